package share

import (
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"saru/lib/flow"
)

// TestMixture changes the addresses again and again under a flood of packets that are foreign all the time: none may pass in the middle of a change. The kernel judges a packet by
// the rules of the generation in which it entered a base chain, but by the elements that a set has in the moment in which they are looked up (nf_tables_core.c, nft_do_chain; nft_set_elem_active).
func TestMixture(t *testing.T) {
	for _, is4 := range []bool{true, false} {
		t.Run(familyName("IPv", is4), func(t *testing.T) {
			w := newWorld(t)
			vip := benchVIP[is4]
			sense := flow.SenseOf(flow.SrcAddr, flow.SrcPort)
			closed := []Virtual{{Address: vip, Sense: sense}}
			open := []Virtual{{Address: vip, Sense: sense, Open: true, Services: []Service{{Protocol: tcp, Port: 80}}}}
			bySource := []Virtual{{Address: vip, Sense: sense, Open: true, Services: []Service{
				{Protocol: tcp, Port: 80, BySource: true}, {Protocol: tcp, Port: 443, BySource: true}, {Protocol: tcp, Port: 21, BySource: true},
			}}}
			cfg := testConfig()
			cfg.Virtuals = closed
			f := mustOpen(t, cfg)
			// A client whose packets are foreign by each share function while the address is open with it: the buckets of its address, and of its address and port.
			rng := rand.New(rand.NewPCG(1, 2))
			client := randomSource(rng, is4)
			to := netip.AddrPortFrom(vip, 80)
			bucket := func(v Virtual) uint32 { fn := cfg.FunctionOf(v, tcp, 80); return fn.Bucket(client, to) }
			whole, source := bucket(open[0]), bucket(bySource[0])
			if whole == source {
				t.Fatal("one bucket by both functions")
			}
			steps := []struct {
				virtuals []Virtual
				foreign  uint32 // the bucket that this director does not own from here to the next step, and the only one
			}{{open, whole}, {closed, whole}, {closed, source}, {bySource, source}, {closed, source}, {closed, whole}}
			end, changes := w.flood(syn(tuple{client, to})), 0
			for until := time.Now().Add(3 * time.Second); time.Now().Before(until); {
				for _, s := range steps {
					must(t, f.Apply(buckets(flow.Default.Buckets, func(b uint32) bool { return b != s.foreign })))
					must(t, f.Grant(lasts(time.Minute)))
					must(t, f.SetVirtuals(s.virtuals))
					changes++
				}
			}
			end(changes)
		})
	}
}

// TestReplaced replaces the whole closed table again and again under a flood, as a start of saru does: no packet may pass.
func TestReplaced(t *testing.T) {
	w := newWorld(t)
	f := mustOpen(t, testConfig())
	end, replaced := w.flood(syn(flowOf("11.0.0.1:1000", "192.0.2.1:80"))), 0
	for until := time.Now().Add(6 * time.Second); time.Now().Before(until); replaced++ {
		must(t, f.install())
	}
	end(replaced)
	tables := nft(t, "list tables")
	if strings.Contains(tables, coverTable(DefaultTable)) {
		t.Error("a cover is left:\n" + tables)
	}
}

// flood writes a packet again and again, until it is ended. None may have passed then.
func (w *world) flood(pkt []byte) (end func(changes int)) {
	stop, sent := make(chan struct{}), 0
	wait := w.ns.Go(w.t, func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := w.out.Write(pkt); err == nil {
					sent++
				}
			}
		}
	})
	return func(changes int) {
		w.t.Helper()
		close(stop)
		wait()
		passed := w.passed()
		w.t.Logf("%d packets during %d changes, %d passed", sent, changes, passed)
		if passed != 0 || sent < 1000 || changes < 10 {
			w.t.Errorf("%d of %d packets passed during %d changes", passed, sent, changes)
		}
	}
}
