// Package metrics serves a daemon's Prometheus metrics over HTTP.
package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Path is where the metrics are, as Prometheus asks for by default.
const Path = "/metrics"

const (
	// timeout bounds a scrape: Prometheus' default scrape_timeout.
	timeout = 10 * time.Second
	// parallel bounds the scrapes at once; the port is open to the network.
	parallel = 4
)

// Serve answers scrapes on addr (ADDR:PORT) with what the collectors report, and
// the Go runtime's and the process' own metrics, until ctx ends, which is no
// error. It uses a registry of its own. Errors name the address or the collector.
func Serve(ctx context.Context, addr string, all ...prometheus.Collector) error {
	l, err := Listen(ctx, addr)
	if err != nil {
		return err
	}
	return ServeOn(ctx, l, all...)
}

// Listen opens the port alone: a daemon finds out before it reports that it is ready.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	return l, nil
}

// ServeOn is Serve on a listener, which it closes.
func ServeOn(ctx context.Context, l net.Listener, all ...prometheus.Collector) error {
	defer l.Close() // a second time after Serve, harmless
	registry := prometheus.NewRegistry()
	all = append(all, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, c := range all {
		if err := registry.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET "+Path, promhttp.HandlerFor(registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: parallel, Timeout: timeout,
	}))
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: timeout,
		ReadTimeout:       timeout,
		WriteTimeout:      2 * timeout,
		IdleTimeout:       2 * time.Minute, // longer than a usual scrape interval
		MaxHeaderBytes:    64 << 10,
	}
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(l) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
	case <-ctx.Done():
		srv.Close() // a scrape that is cut off is made again
		if err := <-failed; !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve metrics on %s: %w", l.Addr(), err)
		}
		return nil
	}
}
