package metrics

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestServe(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "syncd_synced", Help: "1 if the table is complete."}, func() float64 { return 1 })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- ServeOn(ctx, l, own) }()

	resp, err := http.Get("http://" + l.Addr().String() + Path)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\nsyncd_synced 1\n", "\ngo_goroutines ", "\nprocess_open_fds "} {
		if !strings.Contains(string(body), want) {
			t.Errorf("reply lacks %q", want)
		}
	}
	if err := Serve(t.Context(), l.Addr().String()); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("second server on the port: error %v, want one that names it", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("ServeOn: %v", err)
	}
	if _, err := http.Get("http://" + l.Addr().String() + Path); err == nil {
		t.Error("the port is open after the end")
	}
}

func TestServeRefusesDoubles(t *testing.T) {
	l, err := Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := prometheus.NewGauge(prometheus.GaugeOpts{Name: "x"})
	if err := ServeOn(t.Context(), l, c, c); err == nil {
		t.Error("one collector was registered twice")
	}
	if _, err := l.Accept(); err == nil {
		t.Error("the listener is open after an error")
	}
}
