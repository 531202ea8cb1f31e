package syncd

import (
	"fmt"
	"testing"
	"time"
)

// BenchmarkOwnLag is syncd's own share of the lag, with one processor for each of two directors: from the moment at which a message of the
// kernel is there to be read to the moment at which the peer's kernel is given the record. What the kernel itself waits (its tick) is not in
// it. Each record is of a new connection, in messages of one record, and stays.
func BenchmarkOwnLag(b *testing.B) {
	const span = 4 * time.Second
	for _, rate := range []int{1000, 100_000} {
		b.Run(fmt.Sprintf("new=%d", rate), func(b *testing.B) {
			var worst, p50, p99, pause time.Duration
			var sender, receiver time.Duration
			records := rate * int(span/time.Second)
			for b.Loop() {
				b.StopTimer()
				p := newPair(b, records)
				p.start()
				for _, d := range []*process{p.from, p.to} {
					d.do(order{Do: "begin"})
				}
				b.StartTimer()
				p.from.do(order{Do: "load", Load: load{Count: records, Records: records, Rate: float64(rate)}})
				p.from.do(order{Do: "wait"})
				p.arrived(uint64(records), time.Now())
				b.StopTimer()
				from, to := p.from.do(order{Do: "report"}), p.to.do(order{Do: "report"})
				if to.Lags != uint64(records) {
					b.Errorf("%d of %d records arrived", to.Lags, records)
				}
				p50, p99, worst = p50+to.P50, p99+to.P99, max(worst, to.Longest)
				pause = max(pause, from.Pause, to.Pause)
				sender, receiver = sender+from.Processor, receiver+to.Processor
				p.from.stop()
				p.to.stop()
				b.StartTimer()
			}
			n := float64(b.N)
			b.ReportMetric(p50.Seconds()*1e3/n, "p50-ms")
			b.ReportMetric(p99.Seconds()*1e3/n, "p99-ms")
			b.ReportMetric(worst.Seconds()*1e3, "longest-ms")
			b.ReportMetric(pause.Seconds()*1e6, "gc-pause-us")
			b.ReportMetric(sender.Seconds()*1e6/n/float64(records), "sender-cpu-us/record")
			b.ReportMetric(receiver.Seconds()*1e6/n/float64(records), "receiver-cpu-us/record")
			b.ReportMetric(0, "ns/op")
		})
	}
}
