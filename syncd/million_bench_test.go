package syncd

import (
	"testing"
	"time"
)

// memoryBar is what an IPv4 connection may cost in memory, in bytes.
const memoryBar = 128

// BenchmarkMillion is what a million IPv4 connections cost the director whose kernel reports them, one a message, and another one: memory,
// all of it, which is replica, backlog, buffers and garbage; processor time; and bytes on the wire, with the heartbeats that are sent
// meanwhile and with Ethernet's. The empty directors' memory is subtracted, and so is what the pump remembers.
func BenchmarkMillion(b *testing.B) {
	const connections = 1_000_000
	const pump = 4 // bytes a connection
	names := [2]string{"sender", "receiver"}
	var heap, resident, peak, processor [2]float64
	var pause [2]time.Duration
	var bytes, datagrams float64
	for b.Loop() {
		p := newPair(b, connections)
		p.start()
		both := [2]*process{p.from, p.to}
		var before [2]answer
		for i, d := range both {
			before[i] = d.do(order{Do: "free"})
			d.do(order{Do: "begin"})
		}
		p.from.do(order{Do: "load", Load: load{Count: connections, Records: connections, Window: inFlight}})
		p.from.do(order{Do: "wait"})
		p.arrived(connections, time.Now())
		for i, d := range both {
			at := d.do(order{Do: "report"})
			after := d.do(order{Do: "free"})
			if n := d.do(order{Do: "check"}); n.Replica != connections {
				b.Errorf("%s has %d of %d connections", d.name, n.Replica, connections)
			}
			heap[i] += float64(after.Heap-before[i].Heap) / connections
			resident[i] += float64(after.Resident-before[i].Resident)/connections - pump
			most := float64(at.Peak-before[i].Resident)/connections - pump
			if peak[i] += most; most > memoryBar {
				b.Errorf("the %s uses %.0f bytes a connection, want %d at most", names[i], most, memoryBar)
			}
			processor[i] += at.Processor.Seconds() * 1e6 / connections
			pause[i] = max(pause[i], at.Pause)
			if i == 0 {
				bytes += float64(at.Status.Counters["sent_bytes"] - before[0].Status.Counters["sent_bytes"])
				datagrams += float64(at.Status.Counters["sent_datagrams"] - before[0].Status.Counters["sent_datagrams"])
			}
		}
		p.from.stop()
		p.to.stop()
	}
	n := float64(b.N)
	for i, name := range names {
		b.ReportMetric(heap[i]/n, name+"-heap-bytes/conn")
		b.ReportMetric(resident[i]/n, name+"-resident-bytes/conn")
		b.ReportMetric(peak[i]/n, name+"-peak-bytes/conn")
		b.ReportMetric(processor[i]/n, name+"-cpu-us/conn")
		b.ReportMetric(pause[i].Seconds()*1e6, name+"-pause-us")
	}
	b.ReportMetric(bytes/n/connections, "bytes/conn")
	b.ReportMetric((bytes+datagrams*overhead)/n/connections, "wire-bytes/conn")
	b.ReportMetric(0, "ns/op")
}
