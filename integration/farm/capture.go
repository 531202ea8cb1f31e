package farm

import (
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Capture is a tcpdump that writes to File.
type Capture struct {
	File string
	p    *Process
}

// captureWait bounds the start of tcpdump.
const captureWait = 20 * time.Second

// Capture records what passes an interface of the node and matches the filter
// (tcpdump's language), in name.pcap of the node's folder. It returns when
// tcpdump listens.
func (n *Node) Capture(name, iface, filter string) (*Capture, error) {
	c := &Capture{File: filepath.Join(n.dir, name+".pcap")}
	// -U: each packet is in the file at once. -Z root: it may write there.
	args := []string{"-i", iface, "-n", "-U", "-s", "0", "-Z", "root", "--immediate-mode", "-w", c.File}
	if filter != "" {
		args = append(args, filter)
	}
	p, err := n.Start("tcpdump", args...)
	if err != nil {
		return nil, err
	}
	c.p = p
	if err := p.WaitFor("listening on", captureWait); err != nil {
		p.Signal(unix.SIGKILL) //nolint:errcheck // it may have ended
		return nil, fmt.Errorf("capture on %s of %s: %w", iface, n.Name, err)
	}
	return c, nil
}

// Stop ends the capture; the file is complete afterwards.
func (c *Capture) Stop() error {
	if err := c.p.Signal(unix.SIGINT); err != nil {
		return fmt.Errorf("stop capture: %w", err)
	}
	if err := c.p.Wait(); err != nil {
		return fmt.Errorf("stop capture: %w", err)
	}
	return nil
}
