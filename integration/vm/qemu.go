package vm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// qemu knows how to call QEMU.
type qemu struct {
	prefix []string // program (or loader and program) and fixed arguments
	env    []string
}

// minQEMU is the first major version that emulates newer guests correctly:
// Debian 12's 7.2 corrupts Linux 6.12 and later (double faults, user-space
// segmentation faults in about half of the runs).
const minQEMU = 10

// qemu returns QEMU: the one from bookworm-backports, unpacked with all its
// libraries and run by its own loader, so the host needs nothing. If it
// cannot be fetched, the host's own will do when it is new enough.
func (c *Cache) qemu(ctx context.Context) (*qemu, error) {
	dir, err := c.once(ctx, "tree/qemu", func(tmp string) error {
		return c.apt(backports).unpack(ctx, tmp, "QEMU", true, "qemu-system-x86")
	})
	if err != nil {
		own, ownErr := systemQEMU(ctx)
		if ownErr != nil {
			return nil, errors.Join(err, ownErr)
		}
		c.logf("%v", err)
		c.logf("using the system's %s", own.prefix[0])
		return own, nil
	}
	t := tree(dir)
	at, err := t.find("qemu-system-x86_64", pathDirs)
	if err != nil {
		return nil, err
	}
	cmd, err := t.command(ctx, at)
	if err != nil {
		return nil, err
	}
	q := &qemu{prefix: cmd.Args}
	for _, d := range []string{"usr/share/seabios", "usr/share/qemu"} {
		q.prefix = append(q.prefix, "-L", filepath.Join(dir, d))
	}
	// Accelerators are loadable modules in Debian's build.
	q.env = append(os.Environ(), "QEMU_MODULE_DIR="+filepath.Join(dir, "usr/lib/x86_64-linux-gnu/qemu"))
	return q, nil
}

// systemQEMU returns the host's QEMU if it is new enough.
func systemQEMU(ctx context.Context) (*qemu, error) {
	p, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, fmt.Errorf("the system's QEMU: %w", err)
	}
	out, err := exec.CommandContext(ctx, p, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("%s --version: %w", p, err)
	}
	m := regexp.MustCompile(`version (\d+)\.`).FindSubmatch(out)
	if m == nil {
		return nil, fmt.Errorf("%s --version says %q", p, out)
	}
	if major, err := strconv.Atoi(string(m[1])); err != nil || major < minQEMU {
		return nil, fmt.Errorf("%s is version %s, older than %d: it corrupts newer guests", p, m[1], minQEMU)
	}
	return &qemu{prefix: []string{p}, env: os.Environ()}, nil
}

// machine is one guest as QEMU sees it.
type machine struct {
	kernel, initrd string
	accel          string // tcg or kvm
	memory         string
	cpus           int
	segments       []string // virtual hubs, "GROUP:PORT"
	name           string   // makes the MAC addresses of this guest its own
}

// args renders the command line. The ports' sockets are file descriptors 3
// and up, in the order of ports; the console's is the last.
func (m *machine) args() []string {
	accel, cpu := "tcg,thread=multi", "max"
	if m.accel == "kvm" {
		accel, cpu = "kvm", "host"
	}
	a := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		// microvm hangs with two CPUs.
		"-M", "q35", "-accel", accel, "-cpu", cpu, "-smp", strconv.Itoa(m.cpus), "-m", m.memory,
		"-kernel", m.kernel, "-initrd", m.initrd,
		// oops=panic: without it a crashed guest hangs until the time limit.
		// reboot=t: a triple fault, the only reset that needs no working ACPI.
		"-append", "console=ttyS0 reboot=t panic=-1 oops=panic quiet random.trust_cpu=on",
		"-device", "virtio-serial-pci",
	}
	fd := 3
	for i, p := range ports {
		id := "port" + strconv.Itoa(i)
		a = append(a, "-chardev", fmt.Sprintf("socket,id=%s,fd=%d", id, fd), "-device", fmt.Sprintf("virtserialport,chardev=%s,name=%s", id, p))
		fd++
	}
	a = append(a, "-chardev", fmt.Sprintf("socket,id=console,fd=%d", fd), "-serial", "chardev:console")
	if len(m.segments) == 0 {
		a = append(a, "-net", "none")
	}
	for i, s := range m.segments {
		var sum uint32
		for _, b := range []byte(m.name) {
			sum = sum*31 + uint32(b)
		}
		a = append(a, "-netdev", fmt.Sprintf("socket,id=net%d,mcast=%s,localaddr=127.0.0.1", i, s),
			"-device", fmt.Sprintf("virtio-net-pci,netdev=net%d,mac=52:54:%02x:%02x:%02x:%02x", i, byte(sum>>16), byte(sum>>8), byte(sum), byte(i)))
	}
	return a
}

// hasVirtualisation tells whether the CPU itself offers virtualisation.
// /dev/kvm alone proves nothing: on a paravirtual host it may exist and hang
// every guest.
func hasVirtualisation() bool {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return false
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		name, flags, _ := strings.Cut(s.Text(), ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		for f := range strings.FieldsSeq(flags) {
			if f == "vmx" || f == "svm" {
				kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
				if err != nil {
					return false
				}
				kvm.Close()
				return true
			}
		}
		return false
	}
	return false
}
