package farm

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"
)

// Impair makes what the node receives on a segment suffer, in the words of
// tc-netem(8): "loss 5% delay 5ms reorder 25%". Each node has its own luck: what
// one of them loses, others receive. Words given later replace those given
// before; none end it.
func (n *Node) Impair(s Segment, words string) error {
	args := []string{"qdisc", "del", "dev", n.port(s), "root"}
	if words != "" {
		args = append([]string{"qdisc", "replace", "dev", n.port(s), "root", "netem"}, strings.Fields(words)...)
	}
	if _, err := n.farm.hub.Run("tc", args...); err != nil {
		return fmt.Errorf("impair %s of %s: %w", s, n.Name, err)
	}
	return nil
}

// Impaired returns how many packets an impairment has let through to the node
// and how many it has dropped, since the first call of Impair.
func (n *Node) Impaired(s Segment) (passed, dropped uint64, err error) {
	out, err := n.farm.hub.Run("tc", "-s", "-j", "qdisc", "show", "dev", n.port(s))
	if err != nil {
		return 0, 0, fmt.Errorf("impairment of %s of %s: %w", s, n.Name, err)
	}
	var all []struct {
		Kind           string
		Packets, Drops uint64
	}
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return 0, 0, fmt.Errorf("impairment of %s of %s: tc says %q: %w", s, n.Name, out, err)
	}
	for _, q := range all {
		if q.Kind == "netem" {
			return q.Packets, q.Drops, nil
		}
	}
	return 0, 0, fmt.Errorf("impairment of %s of %s: there is none: %s", s, n.Name, out)
}

// RenewLink takes the node's interface to a segment away and makes it anew, with
// the same name and addresses: its index is another one.
func (n *Node) RenewLink(s Segment) error {
	err := n.farm.hub.withNetlink(func(h *netlink.Handle) error {
		link, err := h.LinkByName(n.port(s))
		if err != nil {
			return err
		}
		return h.LinkDel(link)
	})
	if err == nil {
		err = n.addLink(s)
	}
	if err != nil {
		return fmt.Errorf("renew link of %s to %s: %w", n.Name, s, err)
	}
	return nil
}
