package transfer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"saru/lib/peer"
	"saru/proto/ipvssync"
	wire "saru/proto/transfer"
)

// pull is the client's side of a session.
type pull struct {
	link
	req     *Request
	res     Result
	small   []byte // the frame that is written
	total   uint64 // entries to be expected
	most    uint64 // entries to be accepted
	wanted  *[wire.Buckets]bool
	last    int // bucket of the newest entry
	origins []peer.ID
	names   map[peer.ID]string
	batch   []Entry

	told   uint64 // entries at the last progress
	toldAt time.Time
}

// Pull pulls from the teacher at the other end of conn, which it closes. It returns ctx's error when ctx ends. Whatever was learned before
// an error stays learned.
func Pull(ctx context.Context, conn net.Conn, cfg Config, req Request) (Result, error) {
	begin := time.Now()
	p := &pull{
		link: link{ctx: ctx, conn: conn, end: begin.Add(frameTime), limit: wire.MaxPayload},
		req:  &req, last: -1, names: map[peer.ID]string{}, batch: make([]Entry, 0, maxBatch), toldAt: begin,
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	err := p.run(&cfg, begin)
	p.res.Bytes, p.res.Took = p.received, time.Since(begin)
	cfg.Counters.add(outcome(err), 1)
	cfg.Counters.add(Entries, p.res.Entries)
	cfg.Counters.add(Bytes, p.res.Bytes)
	cfg.Counters.add(Skipped, p.res.Skipped)
	if err != nil {
		return p.res, fmt.Errorf("%s from %s: %w", req.Purpose, req.Expect.Node, err)
	}
	return p.res, nil
}

func (p *pull) run(cfg *Config, begin time.Time) error {
	own := newHello(wire.RoleClient, cfg.Node, cfg.Incarnation, &cfg.Auth)
	if err := p.sendHello(&own); err != nil {
		return err
	}
	other, err := p.readHello()
	if err != nil {
		return err
	}
	if err := p.agree(&cfg.Auth, &own, &other); err != nil {
		return err
	}
	if other.Node != uint64(p.req.Expect.Node) || other.Incarnation != uint64(p.req.Expect.Incarnation) {
		return ErrIncarnation
	}
	p.end = begin.Add(lifetime)
	p.begin(wire.TypeRequest)
	p.small = wire.AppendRequest(p.small, &wire.Request{Purpose: p.req.Purpose, Node: other.Node, Incarnation: other.Incarnation})
	if err := p.send(p.small); err != nil {
		return err
	}
	b, err := p.expect(wire.TypeStart)
	if err != nil {
		return err
	}
	start, err := wire.ParseSummary(b)
	if err != nil {
		return err
	}
	p.total = start.Entries
	if p.req.Purpose != Join {
		if err := p.differences(); err != nil {
			return err
		}
	}
	p.most = 2*min(p.total, 1<<40) + excess
	complete, err := p.entries()
	if err != nil {
		return err
	}
	p.res.Complete = start.Complete && complete
	p.progress(true)
	return nil
}

// begin begins a frame in p.small.
func (p *pull) begin(t wire.Type) { p.small = wire.BeginFrame(p.small[:0], t) }

// next reads a frame. An error frame is an error.
func (p *pull) next() (wire.Type, []byte, error) {
	t, b, err := p.read()
	if err != nil || t != wire.TypeError {
		return t, b, err
	}
	code, err := wire.ParseError(b)
	switch {
	case err != nil:
	case code == wire.CodeBusy:
		err = ErrBusy
	case code == wire.CodeStopping:
		err = ErrStopping
	default:
		err = fmt.Errorf("%w (code %d)", ErrRefused, code)
	}
	return 0, nil, err
}

// expect reads a frame of one type.
func (p *pull) expect(want wire.Type) ([]byte, error) {
	t, b, err := p.next()
	if err == nil && t != want {
		err = fmt.Errorf("%s instead of %s: %w", t, want, ErrUnexpected)
	}
	return b, err
}

// differences finds the buckets that differ to the last, asks for them and says how many entries are to come.
func (p *pull) differences() error {
	buckets := make([]uint16, wire.Buckets)
	for i := range buckets {
		buckets[i] = uint16(i)
	}
	for round := 0; round < maxRounds && len(buckets) > 0; round++ {
		if round > 0 {
			if err := p.pause(roundPause); err != nil {
				return err
			}
		}
		var err error
		if buckets, err = p.round(buckets); err != nil {
			return fmt.Errorf("round %d of digests: %w", round+1, err)
		}
	}
	p.res.Buckets = slices.Clone(buckets)
	p.wanted = new([wire.Buckets]bool)
	for _, n := range buckets {
		p.wanted[n] = true
	}
	p.begin(wire.TypeWant)
	p.small = wire.AppendWant(p.small, buckets)
	return p.send(p.small)
}

func (p *pull) pause(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
}

// round has the digests of the buckets compared, all at one cut, and returns in the same memory those that differ.
func (p *pull) round(buckets []uint16) ([]uint16, error) {
	cut, differ := p.req.Cut(), buckets[:0]
	var own, theirs []Digest
	p.total = 0
	for page := range slices.Chunk(buckets, wire.MaxPage) {
		own = p.req.Own(cut, page, own[:0])
		p.begin(wire.TypeDigests)
		p.small = wire.AppendPage(p.small, cut, own)
		if err := p.send(p.small); err != nil {
			return nil, err
		}
		b, err := p.expect(wire.TypeDiffer)
		if err != nil {
			return nil, err
		}
		if theirs, err = wire.ParseDigests(b, theirs[:0]); err != nil {
			return nil, err
		}
		i := 0
		for _, d := range theirs {
			for i < len(own) && own[i].Bucket != d.Bucket {
				i++
			}
			if i == len(own) {
				return nil, ErrBucket
			}
			if own[i] == d {
				return nil, wire.ErrPayload
			}
			differ = append(differ, d.Bucket)
			p.total += uint64(d.Count)
		}
	}
	return differ, nil
}

// entries receives the entries and returns what the teacher says of its table at the end.
func (p *pull) entries() (complete bool, err error) {
	for {
		t, b, err := p.next()
		if err != nil {
			return false, err
		}
		switch t {
		case wire.TypeOrigins:
			err = p.announced(b)
		case wire.TypeEntries:
			err = p.learn(b)
		case wire.TypeFinish:
			s, err := wire.ParseSummary(b)
			if err == nil && s.Entries != p.res.Entries {
				err = fmt.Errorf("%d sent, %d received: %w", s.Entries, p.res.Entries, ErrCount)
			}
			return s.Complete, err
		default:
			err = fmt.Errorf("%s among entries: %w", t, ErrUnexpected)
		}
		if err != nil {
			return false, err
		}
	}
}

// announced takes new origins.
func (p *pull) announced(b []byte) error {
	if len(b) == 0 {
		return wire.ErrPayload
	}
	for len(b) > 0 {
		o, rest, err := wire.ParseOrigin(b)
		if err != nil {
			return err
		}
		if int(o.Index) != len(p.origins) {
			return fmt.Errorf("origin %d announced as number %d: %w", o.Index, len(p.origins), ErrOrigin)
		}
		id := peer.ID(o.Node)
		p.origins = append(p.origins, id)
		if o.Name != "" && peer.IDOf(o.Name) == id { // a name that is not the node's would only mislead
			p.names[id] = o.Name
		}
		b = rest
	}
	return nil
}

// learn decodes a frame of entries and gives them away.
func (p *pull) learn(b []byte) error {
	r := wire.NewReader(b)
	err := p.decode(&r)
	p.flush() // those before a damaged one count
	if err != nil {
		return fmt.Errorf("entry %d: %w", p.res.Entries, err)
	}
	p.progress(false)
	return nil
}

func (p *pull) decode(r *wire.Reader) error {
	var it wire.Item
	for {
		if len(p.batch) == cap(p.batch) {
			p.flush()
		}
		n := len(p.batch)
		p.batch = p.batch[:n+1]
		e := &p.batch[n]
		err := r.Next(&it, &e.Record)
		if err != nil || it.Clock == 0 || e.Record.Timeout <= it.Age {
			p.batch = p.batch[:n]
			switch {
			case errors.Is(err, wire.ErrEnd):
				return nil
			case err == nil, ipvssync.Skipped(err):
				p.res.Skipped++
			case errors.Is(err, wire.ErrPayload):
				return err
			default:
				return fmt.Errorf("%w: %w", ErrRecord, err)
			}
		}
		if p.res.Entries++; p.res.Entries > p.most {
			p.batch = p.batch[:n]
			return ErrExcess
		}
		bucket := r.Bucket()
		if int(bucket) < p.last || p.wanted != nil && !p.wanted[bucket] {
			p.batch = p.batch[:n]
			return fmt.Errorf("bucket %d: %w", bucket, ErrBucket)
		}
		p.last = int(bucket)
		if len(p.batch) == n {
			continue // skipped
		}
		if int(it.Origin) >= len(p.origins) {
			p.batch = p.batch[:n]
			return ErrOrigin
		}
		if p.req.BucketOf != nil && p.req.BucketOf(&e.Record) != bucket {
			p.batch = p.batch[:n]
			return fmt.Errorf("entry in bucket %d that is of another: %w", bucket, ErrBucket)
		}
		e.Origin, e.Stamp.Grant, e.Stamp.Clock = p.origins[it.Origin], it.Grant, it.Clock
		e.Remaining = time.Duration(e.Record.Timeout-it.Age) * time.Second
	}
}

// flush gives the batch to who learns.
func (p *pull) flush() {
	if len(p.batch) > 0 {
		p.req.Learn(p.batch, p.names)
		p.batch = p.batch[:0]
	}
}

// progress tells of progress when it is time, or at the end.
func (p *pull) progress(end bool) {
	if p.req.Progress == nil {
		return
	}
	now := time.Now()
	if end || p.res.Entries-p.told >= progressEntries || now.Sub(p.toldAt) >= progressTime {
		p.told, p.toldAt = p.res.Entries, now
		p.req.Progress(p.res.Entries, p.total)
	}
}
