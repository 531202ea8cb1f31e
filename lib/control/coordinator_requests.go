package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	"saru/lib/flow"
)

// Parameters of saru's paths.
const (
	whichSource      = "src"
	whichDestination = "dst"
	drainNode        = "node"
	drainWait        = "wait"
	historyLast      = "n"
	historyFollow    = "follow"
)

// WhichRequest asks for the director of a flow.
type WhichRequest struct {
	// Source is the client.
	Source netip.AddrPort
	// Destination is the virtual service; the zero value if it is not known.
	Destination netip.AddrPort
}

// Query returns the request as parameters of PathWhich.
func (r WhichRequest) Query() url.Values {
	q := url.Values{whichSource: {r.Source.String()}}
	if r.Destination.IsValid() {
		q.Set(whichDestination, r.Destination.String())
	}
	return q
}

// ParseWhichRequest reads what Query returns. Its errors wrap ErrBadRequest.
func ParseWhichRequest(q url.Values) (WhichRequest, error) {
	var r WhichRequest
	if err := Parameters(q, whichSource, whichDestination); err != nil {
		return r, err
	}
	var err error
	if r.Source, err = ParseEndpoint(q.Get(whichSource)); err != nil {
		return WhichRequest{}, fmt.Errorf("%w: %s: %w", ErrBadRequest, whichSource, err)
	}
	if !q.Has(whichDestination) {
		return r, nil
	}
	if r.Destination, err = ParseEndpoint(q.Get(whichDestination)); err != nil {
		return WhichRequest{}, fmt.Errorf("%w: %s: %w", ErrBadRequest, whichDestination, err)
	}
	if r.Source.Addr().Is4() != r.Destination.Addr().Is4() {
		return WhichRequest{}, fmt.Errorf("%w: %s and %s are of different families", ErrBadRequest, r.Source, r.Destination)
	}
	return r, nil
}

// ParseEndpoint reads ADDR:PORT or [ADDR]:PORT.
func ParseEndpoint(s string) (netip.AddrPort, error) {
	e, err := netip.ParseAddrPort(s)
	if err != nil || e.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%q must be ADDR:PORT or [ADDR]:PORT", s)
	}
	return netip.AddrPortFrom(e.Addr().Unmap(), e.Port()), nil
}

// Function returns the share function of the flow out of those of the virtual
// addresses. Without a destination, all those of the flow's family must be the same
// and must not look at the destination. Errors wrap ErrBadRequest.
func (r WhichRequest) Function(functions map[netip.Addr]flow.Function) (flow.Function, error) {
	if r.Destination.IsValid() {
		f, ok := functions[r.Destination.Addr()]
		if !ok {
			return flow.Function{}, fmt.Errorf("%w: %s is no virtual address", ErrBadRequest, r.Destination.Addr())
		}
		return f, nil
	}
	is4 := r.Source.Addr().Is4()
	var found []flow.Function
	for a, f := range functions {
		if a.Is4() != is4 {
			continue
		}
		if f.Sense.Has(flow.DstAddr) || f.Sense.Has(flow.DstPort) {
			return flow.Function{}, fmt.Errorf("%w: the destination counts for %s (%s): name it", ErrBadRequest, a, f.Sense)
		}
		if is4 {
			f.Mask6 = flow.Default.Mask6 // that of the other family does not count
		} else {
			f.Mask4 = flow.Default.Mask4
		}
		if !slices.Contains(found, f) {
			found = append(found, f)
		}
	}
	switch len(found) {
	case 0:
		return flow.Function{}, fmt.Errorf("%w: there is no virtual address of the family of %s", ErrBadRequest, r.Source.Addr())
	case 1:
		return found[0], nil
	}
	return flow.Function{}, fmt.Errorf("%w: virtual addresses differ in what counts of a flow: name the destination", ErrBadRequest)
}

// DrainRequest says who is told to drain, or to take part again.
type DrainRequest struct {
	// Node is the name of a director; "" is the one that is asked.
	Node string
	// Wait asks for the answer when the work is done, not just ordered.
	Wait bool
}

// Query returns the request as parameters of PathDrain and PathUndrain.
func (r DrainRequest) Query() url.Values {
	q := url.Values{}
	if r.Node != "" {
		q.Set(drainNode, r.Node)
	}
	if r.Wait {
		q.Set(drainWait, "1")
	}
	return q
}

// ParseDrainRequest reads what Query returns. Its errors wrap ErrBadRequest.
func ParseDrainRequest(q url.Values) (DrainRequest, error) {
	if err := Parameters(q, drainNode, drainWait); err != nil {
		return DrainRequest{}, err
	}
	if q.Has(drainNode) && q.Get(drainNode) == "" {
		return DrainRequest{}, fmt.Errorf("%w: %s: is empty", ErrBadRequest, drainNode)
	}
	wait, err := parseSwitch(q, drainWait)
	return DrainRequest{Node: q.Get(drainNode), Wait: wait}, err
}

// parseSwitch reads a parameter that is 1, 0 or absent.
func parseSwitch(q url.Values, name string) (bool, error) {
	switch q.Get(name) {
	case "1":
		return true, nil
	case "0":
		return false, nil
	}
	if !q.Has(name) {
		return false, nil
	}
	return false, fmt.Errorf("%w: %s: must be 0 or 1", ErrBadRequest, name)
}

// HistoryRequest says which events are wanted.
type HistoryRequest struct {
	// Last is how many of the newest; negative: all that are kept.
	Last int
	// Follow asks for those to come as well, until the client goes away. Serve it
	// with Server.HandleWork.
	Follow bool
}

// Query returns the request as parameters of PathHistory.
func (r HistoryRequest) Query() url.Values {
	q := url.Values{}
	if r.Last >= 0 {
		q.Set(historyLast, strconv.Itoa(r.Last))
	}
	if r.Follow {
		q.Set(historyFollow, "1")
	}
	return q
}

// ParseHistoryRequest reads what Query returns. Its errors wrap ErrBadRequest.
func ParseHistoryRequest(q url.Values) (HistoryRequest, error) {
	if err := Parameters(q, historyLast, historyFollow); err != nil {
		return HistoryRequest{}, err
	}
	r := HistoryRequest{Last: -1}
	if q.Has(historyLast) {
		n, err := strconv.ParseUint(q.Get(historyLast), 10, 31)
		if err != nil {
			return HistoryRequest{}, fmt.Errorf("%w: %s: must be a number", ErrBadRequest, historyLast)
		}
		r.Last = int(n)
	}
	var err error
	r.Follow, err = parseSwitch(q, historyFollow)
	return r, err
}

// WithQuery returns a path with parameters.
func WithQuery(path string, q url.Values) string {
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}

// Status asks saru how it is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.Get(ctx, PathStatus, &s)
	return s, err
}

// Buckets asks saru who owns what. What it returns has been checked.
func (c *Client) Buckets(ctx context.Context) (Buckets, error) {
	var b Buckets
	err := c.Get(ctx, PathBuckets, &b)
	if err == nil {
		if err = b.Check(); err != nil {
			err = fmt.Errorf("answer to %s: %w", PathBuckets, err)
		}
	}
	return b, err
}

// Which asks saru for the director of a flow.
func (c *Client) Which(ctx context.Context, r WhichRequest) (Which, error) {
	var w Which
	err := c.Get(ctx, WithQuery(PathWhich, r.Query()), &w)
	return w, err
}

// Drain tells a director, by way of the one that is asked, to own nothing.
func (c *Client) Drain(ctx context.Context, r DrainRequest) (DrainSummary, error) {
	return c.drain(ctx, PathDrain, r)
}

// Undrain tells a director to take part again.
func (c *Client) Undrain(ctx context.Context, r DrainRequest) (DrainSummary, error) {
	return c.drain(ctx, PathUndrain, r)
}

func (c *Client) drain(ctx context.Context, path string, r DrainRequest) (DrainSummary, error) {
	var sum *DrainSummary
	err := c.PostStream(ctx, path, r.Query(), func(text json.RawMessage) error {
		var line DrainLine
		if err := json.Unmarshal(text, &line); err != nil {
			return fmt.Errorf("answer to %s: %w", path, err)
		}
		if line.Summary != nil {
			sum = line.Summary
		}
		return nil
	})
	if err == nil && sum == nil {
		err = errors.New("answer to " + path + ": it has no summary")
	}
	if err != nil {
		return DrainSummary{}, err
	}
	return *sum, nil
}

// History asks saru for events and calls fn with each.
func (c *Client) History(ctx context.Context, r HistoryRequest, fn func(Event) error) error {
	return c.Stream(ctx, WithQuery(PathHistory, r.Query()), func(text json.RawMessage) error {
		var e Event
		if err := json.Unmarshal(text, &e); err != nil {
			return fmt.Errorf("answer to %s: %w", PathHistory, err)
		}
		return fn(e)
	})
}
