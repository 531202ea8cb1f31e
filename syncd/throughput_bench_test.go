package syncd

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"saru/lib/tun/nstest"
)

// pair is a sender and a receiver, each a process bound to a processor of its own, on the two ends of a veth pair.
type pair struct{ from, to *process }

// newPair starts both; they do not know each other yet.
func newPair(tb testing.TB, connections int) pair {
	tb.Helper()
	here, w := nstest.New(tb), newWindow(tb)
	other := nstest.Other(tb)
	nstest.Veth(tb, "a0", []string{"192.0.2.10/24"}, other, "b0", []string{"192.0.2.11/24"})
	return pair{
		launch(tb, here, 0, w, directorConfig{Node: "a", Interface: "a0", Connections: connections, Own: 0, Peer: 1}),
		launch(tb, other, 1, w, directorConfig{Node: "b", Interface: "b0", Connections: connections, Own: 1, Peer: 0}),
	}
}

func (p pair) start() {
	for _, d := range []*process{p.from, p.to} {
		d.do(order{Do: "start"})
	}
	p.from.synced(1)
	p.to.synced(1)
}

// arrived waits until the receiver's kernel has taken so many records in total, and returns how long it took since the start of the load.
func (p pair) arrived(records uint64, began time.Time) time.Duration {
	p.to.tb.Helper()
	p.to.do(order{Do: "arrive", Records: records})
	return time.Since(began)
}

// inFlight is how many records a benchmark has on the way at most: what the receiver's socket holds, less than half of it.
const inFlight = 50_000

// BenchmarkEndToEnd: records from the tap of one director to the tap of another, as fast as both can with one processor each: the rate, what
// each alone could do by the processor time that it used, and bytes on the wire. The connections are there already in "update", and are all
// new in "new". Each message of the kernel has as many records as the name says; syncd sets the kernel up for 1.
func BenchmarkEndToEnd(b *testing.B) {
	const connections = 1_000_000
	for _, fresh := range []bool{false, true} {
		for _, each := range []int{1, 40} {
			kind := "update"
			if fresh {
				kind = "new"
			}
			b.Run(fmt.Sprintf("%s/records=%d", kind, each), func(b *testing.B) { endToEnd(b, connections, each, fresh) })
		}
	}
}

func endToEnd(b *testing.B, connections, each int, fresh bool) {
	var records, lost uint64
	var took, sender, receiver, pauseFrom, pauseTo time.Duration
	var bytes, datagrams, repaired uint64
	var machine float64
	for b.Loop() {
		b.StopTimer()
		p := newPair(b, connections)
		p.start()
		l := load{Count: connections, Records: connections, Each: each, Window: inFlight}
		if !fresh {
			p.from.do(order{Do: "load", Load: l})
			p.from.do(order{Do: "wait"})
			p.arrived(uint64(l.Records), time.Now())
			l.Records, l.Other = 4*connections, true // else they lie in the table as they come
		}
		var profiles []func()
		for _, d := range []*process{p.from, p.to} {
			d.do(order{Do: "begin"})
			profiles = append(profiles, d.profile(b.Name()))
		}
		before, base := p.from.do(order{Do: "report"}), p.to.do(order{Do: "report"}).Injected
		b.StartTimer()
		began, busy := time.Now(), machineTime(b)
		p.from.do(order{Do: "load", Load: l})
		p.from.do(order{Do: "wait"})
		took += p.arrived(base+uint64(l.Records), began)
		b.StopTimer()
		from, to := p.from.do(order{Do: "report"}), p.to.do(order{Do: "report"})
		machine += (machineTime(b) - busy).Seconds()
		for _, end := range profiles {
			end()
		}
		records += uint64(l.Records)
		lost += to.Status.Counters["socket_dropped"]
		repaired += to.Status.Counters["repair_recovered"]
		sender += from.Processor
		receiver += to.Processor
		pauseFrom, pauseTo = max(pauseFrom, from.Pause), max(pauseTo, to.Pause)
		bytes += from.Status.Counters["sent_bytes"] - before.Status.Counters["sent_bytes"]
		datagrams += from.Status.Counters["sent_datagrams"] - before.Status.Counters["sent_datagrams"]
		if got := p.to.do(order{Do: "check"}); got.Replica != connections || got.Digest != p.from.do(order{Do: "check"}).Digest || got.Bad != 0 {
			b.Errorf("the receiver has %d of %d connections, or others", got.Replica, connections)
		}
		p.from.stop()
		p.to.stop()
		b.StartTimer()
	}
	n := float64(records)
	b.ReportMetric(n/took.Seconds(), "records/s")
	b.ReportMetric(n/sender.Seconds(), "sender-records/cpu-s")
	b.ReportMetric(n/receiver.Seconds(), "receiver-records/cpu-s")
	b.ReportMetric(float64(bytes)/n, "bytes/record")
	b.ReportMetric((float64(bytes)+float64(datagrams)*overhead)/n, "wire-bytes/record")
	b.ReportMetric(float64(lost), "lost")
	b.ReportMetric(float64(repaired), "repaired")
	// What neither did: soft interrupts, which deliver what the sender sends on the sender's processor, and others on this machine. A rate
	// that was taken beside others is too low.
	b.ReportMetric((machine-sender.Seconds()-receiver.Seconds())/took.Seconds()*100, "others-cpu-%")
	b.ReportMetric(pauseFrom.Seconds()*1e6, "sender-pause-us")
	b.ReportMetric(pauseTo.Seconds()*1e6, "receiver-pause-us")
	b.ReportMetric(0, "ns/op")
}

// overhead is what a datagram costs on Ethernet beside its payload: headers of Ethernet, IPv4 and UDP, frame check sequence, preamble and gap.
const overhead = 14 + 20 + 8 + 4 + 8 + 12

// machineTime is how long the processors have worked since the start of the machine, for anybody, all of them together.
func machineTime(tb testing.TB) time.Duration {
	tb.Helper()
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		tb.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	sum := time.Duration(0)
	for i, f := range strings.Fields(line)[1:9] { // user nice system idle iowait irq softirq steal; guests' time is in the first two
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			tb.Fatal(err)
		}
		if i != 3 && i != 4 {
			sum += time.Duration(n) * (time.Second / 100) // USER_HZ
		}
	}
	return sum
}
