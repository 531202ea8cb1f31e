package vm

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// toolPackages are the packages of the guest's tools; the real ones, because
// tests use them as oracles.
var toolPackages = []string{
	"ipvsadm", "nftables", "tcpdump", "conntrack", "keepalived", "iproute2", "iputils-ping", "iptables",
	"kmod", "dash", "busybox-static", "dpkg", "sysvinit-utils",
}

// programs are taken out of the packages, in the order in which they shadow
// busybox's applets of the same names.
var programs = []string{
	"ip", "ss", "tc", "bridge", "nft", "ipvsadm", "tcpdump", "conntrack", "keepalived", "ping",
	"xtables-nft-multi", "kmod", "dash", "start-stop-daemon",
}

// aliases are further names of programs, as Debian's alternatives set them up.
var aliases = map[string]string{
	"/usr/bin/sh":              "dash",
	"/usr/sbin/modprobe":       "../bin/kmod",
	"/usr/sbin/insmod":         "../bin/kmod",
	"/usr/sbin/rmmod":          "../bin/kmod",
	"/usr/sbin/depmod":         "../bin/kmod",
	"/usr/sbin/lsmod":          "../bin/kmod",
	"/usr/sbin/iptables":       "xtables-nft-multi",
	"/usr/sbin/iptables-save":  "xtables-nft-multi",
	"/usr/sbin/ip6tables":      "xtables-nft-multi",
	"/usr/sbin/ip6tables-save": "xtables-nft-multi",
}

// notFromBusybox are applets that would shadow the real tools inside scripts
// or that make no sense in the guest.
var notFromBusybox = map[string]bool{
	"ip": true, "ipaddr": true, "iplink": true, "ipneigh": true, "iproute": true, "iprule": true, "iptunnel": true,
	"tc": true, "sh": true, "ash": true, "bash": true, "init": true, "linuxrc": true, "busybox": true,
	"modprobe": true, "insmod": true, "rmmod": true, "depmod": true, "lsmod": true, "modinfo": true,
	"dpkg": true, "dpkg-deb": true, "rpm": true, "ping6": true,
}

// pathDirs are searched for programs in a tree and in the guest.
var pathDirs = []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// tools returns the unpacked tree of the guest's tools.
func (c *Cache) tools(ctx context.Context) (tree, error) {
	dir, err := c.once(ctx, "tree/tools", func(tmp string) error {
		return c.apt(bookworm).unpack(ctx, tmp, "the guest's tools", true, toolPackages...)
	})
	return tree(dir), err
}

// addTools writes the tools, busybox for everything else, and the few files
// that a C library wants to see under /etc.
func (a *archive) addTools(ctx context.Context, t tree) error {
	for _, name := range programs {
		at, err := t.find(name, pathDirs)
		if err != nil {
			return fmt.Errorf("initramfs: %w", err)
		}
		if err := a.program(t, at, at); err != nil {
			return err
		}
	}
	for name, target := range aliases {
		if err := a.link(name, target); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/usr/lib/x86_64-linux-gnu/xtables", "/etc/iproute2", "/usr/share/iproute2", "/usr/lib/lsb", "/lib/lsb"} {
		src := filepath.Join(string(t), dir)
		if _, err := os.Stat(src); err == nil {
			if err := a.copy(dir, src); err != nil {
				return err
			}
		}
	}
	if err := a.addBusybox(ctx, t); err != nil {
		return err
	}
	for name, text := range etc {
		if err := a.text(name, text); err != nil {
			return err
		}
	}
	return nil
}

// addBusybox links every applet that no real tool provides.
func (a *archive) addBusybox(ctx context.Context, t tree) error {
	at, err := t.find("busybox", pathDirs)
	if err != nil {
		return fmt.Errorf("initramfs: %w", err)
	}
	if err := a.program(t, at, "/usr/bin/busybox"); err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, filepath.Join(string(t), at), "--list").Output()
	if err != nil {
		return fmt.Errorf("list busybox applets: %w", err)
	}
	for applet := range strings.FieldsSeq(string(out)) {
		if notFromBusybox[applet] || a.seen["/usr/sbin/"+applet] {
			continue
		}
		if err := a.link("/usr/bin/"+applet, "busybox"); err != nil {
			return err
		}
	}
	return nil
}

// etc are the guest's configuration files. tcpdump drops its privileges to a
// user of that name; tests use uid 1000 as "another user".
var etc = map[string]string{
	"/etc/passwd":         "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\ntcpdump:x:101:101::/nonexistent:/usr/sbin/nologin\nuser:x:1000:1000:user:/home/user:/bin/sh\n",
	"/etc/group":          "root:x:0:\nadm:x:4:\nnogroup:x:65534:\ntcpdump:x:101:\nuser:x:1000:\n",
	"/etc/nsswitch.conf":  "passwd: files\ngroup: files\nhosts: files\nprotocols: files\nservices: files\n",
	"/etc/hosts":          "127.0.0.1 localhost\n::1 localhost\n",
	"/etc/protocols":      "ip 0 IP\nicmp 1 ICMP\nigmp 2 IGMP\nipencap 4 IP-ENCAP\ntcp 6 TCP\nudp 17 UDP\nipv6 41 IPv6\nesp 50 IPSEC-ESP\nah 51 IPSEC-AH\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n",
	"/etc/services":       "ftp 21/tcp\ndomain 53/tcp\ndomain 53/udp\nhttp 80/tcp\nhttps 443/tcp\n",
	"/etc/debian_version": "12 (lab)\n",
}
