package program

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"saru/lib/config"
	"saru/lib/control"
	"saru/lib/logging"
)

// Common are the options that every daemon has.
type Common struct {
	// ConfigFile is the value of --config, empty if it was not given.
	ConfigFile  string
	Debug       bool
	LogFacility string // as in logging.Options
	Node        string
	Interfaces  []string
	Group       netip.AddrPort
	// KeyFile is empty if Insecure is set.
	KeyFile  string
	Insecure bool
	Control  string
	Metrics  string // ADDR:PORT, empty for none
	Check    bool
	Cleanup  bool
}

// Texts are what the help says differently of the options of each daemon.
type Texts struct {
	DefaultConfigFile string
	Interface         string
	Insecure          string // what anybody can do without keys
	Cleanup           string
}

// DefaultCommon returns the defaults of a daemon by its name and the port of its group.
func DefaultCommon(name string, port uint16) Common {
	return Common{
		LogFacility: "daemon",
		Group:       netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 81}), port),
		KeyFile:     "/etc/saru/keys",
		Control:     "/run/saru/" + name + ".sock",
	}
}

// AddFlags adds the options to fs.
func (c *Common) AddFlags(fs *pflag.FlagSet, t Texts) {
	v := fs.Var
	v(config.Value(&c.ConfigFile, "FILE", config.Path), config.ConfigOption,
		"configuration file (default "+t.DefaultConfigFile+" where present)")
	config.Flag(fs, &c.Debug, "debug", "log what is otherwise only counted")
	v(config.Value(&c.LogFacility, "NAME", parseFacility), "log_facility",
		"where to log: a facility of syslog, - for the terminal, or /FILE")
	v(config.Value(&c.Node, "NAME", parseNode), "node",
		"name of this director in the farm (default: the host name)")
	v(config.List(&c.Interfaces, "IF", config.Interface), "interface", t.Interface+"; required, repeatable")
	v(config.Value(&c.Group, "ADDR:PORT", config.Group), "group",
		fmt.Sprintf("multicast group of the farm; IPv6 as [ff02::81]:%d", c.Group.Port()))
	v(config.Value(&c.KeyFile, "FILE", config.Path), "key_file",
		"keys that sign and verify messages, mode 0600; saructl genkey makes one")
	config.Flag(fs, &c.Insecure, "insecure", "run without keys: "+t.Insecure)
	v(config.Value(&c.Control, "PATH", config.SocketPath), "control", "control socket")
	v(config.Value(&c.Metrics, "ADDR:PORT", parseMetrics), "metrics",
		"serve Prometheus metrics there (default off)")
	config.Flag(fs, &c.Check, "check", "check configuration and kernel, print what is missing, exit")
	config.Flag(fs, &c.Cleanup, "cleanup", t.Cleanup)
	config.CommandLineOnly(fs, config.ConfigOption, "check", "cleanup")
}

// Complete fills in what the machine decides, and checks what several options tell together. What --interface needs is left to CheckInterfaces.
func (c *Common) Complete(fs *pflag.FlagSet) error {
	if c.Insecure {
		if fs.Changed("key_file") {
			return config.Usagef("--insecure and --key_file exclude each other: with keys every message is signed, without them none")
		}
		c.KeyFile = ""
	}
	if !fs.Changed("node") {
		name, err := os.Hostname()
		if err != nil {
			return config.Usagef("--node: read the host name: %w", err)
		}
		if c.Node, err = parseNode(name); err != nil {
			return config.Usagef("--node: the host name %q does not do, give a name: %w", name, err)
		}
	}
	return nil
}

// CheckInterfaces checks the values of --interface, of which there must be one.
func (c *Common) CheckInterfaces() error {
	if len(c.Interfaces) == 0 {
		return config.Usagef("--interface: required, the name of an interface that all directors share")
	}
	for i, name := range c.Interfaces {
		if slices.Contains(c.Interfaces[:i], name) {
			return config.Usagef("--interface %q: given twice", name)
		}
	}
	return nil
}

// NeedRestart names those of these options that differ from the running ones and that no reload changes.
func (c Common) NeedRestart(running Common) []string {
	return Differing(
		Option{"node", c.Node == running.Node},
		Option{"interface", slices.Equal(c.Interfaces, running.Interfaces)},
		Option{"group", c.Group == running.Group},
		Option{"control", c.Control == running.Control},
		Option{"metrics", c.Metrics == running.Metrics},
		Option{"log_facility", c.LogFacility == running.LogFacility},
	)
}

// TakeOver takes those over that a reload changes.
func (c *Common) TakeOver(from Common) {
	c.KeyFile, c.Insecure, c.Debug = from.KeyFile, from.Insecure, from.Debug
}

// Option is one option, and whether it is the same in two sets.
type Option struct {
	Name string
	Same bool
}

// Differing names the options that are not the same.
func Differing(all ...Option) []string {
	var out []string
	for _, o := range all {
		if !o.Same {
			out = append(out, o.Name)
		}
	}
	return out
}

func parseFacility(s string) (string, error) { return s, logging.CheckFacility(s) }

// maxNode is the longest label of a host name (RFC 1035, section 2.3.4).
const maxNode = 63

func parseNode(s string) (string, error) {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(".-_", r))
	}
	if s == control.WithKernel {
		return "", fmt.Errorf("%q is what sync compare calls a director's own kernel", s)
	}
	if s == "" || len(s) > maxNode || strings.ContainsFunc(s, bad) || s[0] == '-' || s[0] == '.' {
		return "", fmt.Errorf("must be 1 to %d letters, digits, '.', '-' and '_', beginning with none of '.' and '-'", maxNode)
	}
	return s, nil
}

func parseMetrics(s string) (string, error) {
	address := s
	if strings.HasPrefix(s, ":") {
		address = "0.0.0.0" + s // as elsewhere in Go: every address
	}
	a, err := netip.ParseAddrPort(address)
	if err != nil || a.Port() == 0 || a.Addr().IsMulticast() {
		return "", errors.New("must be an address of this machine with a port, such as 127.0.0.1:9848 or [::1]:9848")
	}
	return s, nil
}
