package program

import (
	"context"
	"errors"
	"fmt"
	"net"

	"saru/lib/control"
	"saru/lib/mcast"
	"saru/lib/metrics"
)

// Sockets are what a daemon opens before it changes anything.
type Sockets struct {
	Control net.Listener
	Metrics net.Listener // nil without --metrics
	Conn    *mcast.Conn
}

// OpenSockets opens what the options --control, --metrics, --interface and --group tell, all or none. Errors are those of the environment.
func OpenSockets(ctx context.Context, path, metricsAddress string, group mcast.Config) (Sockets, error) {
	var s Sockets
	fail := func(err error) (Sockets, error) {
		s.Close()
		return Sockets{}, Environment(err)
	}
	var err error
	if s.Control, err = control.Listen(path); err != nil {
		return fail(fmt.Errorf("--control %s: %w", path, err))
	}
	if metricsAddress != "" {
		if s.Metrics, err = metrics.Listen(ctx, metricsAddress); err != nil {
			return fail(fmt.Errorf("--metrics: %w", err))
		}
	}
	if s.Conn, err = mcast.Open(group); err != nil {
		return fail(fmt.Errorf("--interface: %w", err))
	}
	return s, nil
}

// Close closes what is open. What was closed already does no harm.
func (s Sockets) Close() {
	if s.Conn != nil {
		s.Conn.Close()
	}
	if s.Metrics != nil {
		s.Metrics.Close()
	}
	if s.Control != nil {
		s.Control.Close()
	}
}

// ErrRuns says that a living daemon has the control socket.
var ErrRuns = errors.New("it runs, stop it first")

// Alone calls do while no daemon can have this control socket, and removes the socket that a killed one left. With a living daemon it fails with ErrRuns: that is
// stopped with SIGTERM, and nothing is changed under its feet.
func Alone(path string, do func() error) error {
	l, err := control.Listen(path)
	if errors.Is(err, control.ErrInUse) {
		return fmt.Errorf("%w: %w", err, ErrRuns)
	}
	if err != nil {
		return err
	}
	defer l.Close()
	return do()
}
