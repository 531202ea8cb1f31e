package syncd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"time"

	"saru/lib/peer"
	"saru/syncd/engine"
	"saru/syncd/table"
	"saru/syncd/transfer"
)

const (
	// dialTime is how long the way to a teacher may take: it is on the same segment.
	dialTime = 2 * time.Second
	// learnWait is how many messages may wait for the kernel before a teacher is read on.
	learnWait = injectLimit
	// digestStep is how many entries are digested before records get a turn again: some 0.3 ms of waiting for memory.
	digestStep = 4096
	// crowd is how many entries a bucket has at most that are gone through at once; with 10 million connections it has 2,500.
	crowd = 2 * digestStep
)

// replica is the engine as sessions see it. It implements transfer.Source.
type replica struct{ m *Mirrorer }

func (r replica) Digests(cut uint64, buckets []uint16, dst []transfer.Digest) []transfer.Digest {
	for len(buckets) > 0 {
		n, entries, crowded := 0, 0, false
		r.inTurn(func(e *engine.Engine) (more bool) {
			for ; n < len(buckets) && entries < digestStep && !crowded; n++ {
				if crowded = e.BucketLen(buckets[n]) > crowd; crowded {
					break
				}
				sum, count := e.Digest(buckets[n], cut)
				dst = append(dst, transfer.Digest{Bucket: buckets[n], Count: count, Sum: sum})
				entries += 1 + int(count)
			}
			return n < len(buckets)
		})
		if buckets = buckets[n:]; crowded {
			dst = append(dst, r.crowdedDigest(cut, buckets[0]))
			buckets = buckets[1:]
		}
	}
	return dst
}

// inTurn runs a step with the engine held, and lets others have as much time if there is more to do.
func (r replica) inTurn(step func(e *engine.Engine) (more bool)) (more bool) {
	begin := time.Now()
	r.m.With(func(e *engine.Engine) { more = step(e) })
	if more {
		<-time.After(time.Since(begin)) // also on a single processor, which nobody else gets otherwise for 10 ms
	}
	return more
}

// crowdedDigest is the digest of a bucket with more than crowd entries: somebody has chosen the clients' addresses and ports so.
func (r replica) crowdedDigest(cut uint64, bucket uint16) transfer.Digest {
	d := transfer.Digest{Bucket: bucket}
	var at table.Cursor
	for r.inTurn(func(e *engine.Engine) bool {
		sum, count, next := e.DigestStep(at, digestStep, bucket, cut)
		d.Sum, d.Count, at = d.Sum+sum, d.Count+count, next
		return !at.Done
	}) {
	}
	return d
}

func (r replica) Bucket(bucket uint16, fn func(*table.Entry) bool) {
	crowded := false
	r.m.With(func(e *engine.Engine) {
		if crowded = e.BucketLen(bucket) > crowd; !crowded {
			e.Bucket(time.Now(), bucket, fn)
		}
	})
	if !crowded {
		return
	}
	var at table.Cursor
	for r.inTurn(func(e *engine.Engine) bool {
		stopped := false
		at = e.Walk(time.Now(), at, digestStep, func(en *table.Entry, _ string) bool {
			stopped = table.BucketOf(&en.Record) == bucket && !fn(en)
			return !stopped
		})
		return !stopped && !at.Done
	}) {
	}
}

func (r replica) State() transfer.State {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	e := r.m.engine
	return transfer.State{Node: peer.IDOf(e.Node()), Incarnation: e.Incarnation(), Synced: e.Synced(), Entries: uint64(e.Len())}
}

func (r replica) OriginName(id peer.ID) string {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return r.m.engine.OriginName(id)
}

// learn enters what a teacher sends, no faster than the kernel takes it, by a method of the engine.
func (r replica) learn(ctx context.Context, enter func(e *engine.Engine, now time.Time, entries []table.Entry, names map[peer.ID]string),
) func([]table.Entry, map[peer.ID]string) {
	return func(entries []table.Entry, names map[peer.ID]string) {
		r.m.inject.wait(ctx, learnWait)
		r.m.stall.wait(ctx)
		if ctx.Err() != nil {
			return
		}
		r.m.mu.Lock()
		defer r.m.mu.Unlock()
		enter(r.m.engine, time.Now(), entries, names)
	}
}

func (r replica) cut() (cut uint64) {
	r.m.With(func(e *engine.Engine) { cut = e.Cut(time.Now()) })
	return cut
}

// hold holds the session that the engine asked for.
func (m *Mirrorer) hold(ctx context.Context, p engine.Pull) {
	purpose := transfer.Audit
	if p.Purpose == engine.PullJoin {
		purpose = transfer.Join
	}
	res, err := m.pull(ctx, p.Teacher, purpose, replica{m}.learn(ctx, (*engine.Engine).Pulled), nil)
	if ctx.Err() != nil {
		return
	}
	m.With(func(e *engine.Engine) {
		e.PullEnded(time.Now(), engine.PullResult{
			Complete: res.Complete, Busy: errors.Is(err, transfer.ErrBusy), Entries: res.Entries, Differing: len(res.Buckets),
		}, err)
	})
}

// pull connects to a teacher and pulls from it.
func (m *Mirrorer) pull(ctx context.Context, t engine.Teacher, purpose transfer.Purpose, learn func([]table.Entry, map[peer.ID]string),
	progress func(done, total uint64),
) (transfer.Result, error) {
	conn, err := m.dial(ctx, "tcp", dialAddress(t.Addr, t.Link))
	if err != nil {
		return transfer.Result{}, err
	}
	r := replica{m}
	self := r.State()
	return transfer.Pull(ctx, conn, transfer.Config{
		Node: self.Node, Incarnation: self.Incarnation, Auth: m.sessionAuth(), Counters: &m.pulled,
	}, transfer.Request{
		Purpose: purpose, Expect: transfer.Teacher{Node: t.ID, Incarnation: t.Incarnation},
		Own: r.Digests, Cut: r.cut, BucketOf: table.BucketOf, Learn: learn, Progress: progress,
	})
}

// sessionAuth is who is believed in sessions: as with datagrams.
func (m *Mirrorer) sessionAuth() (a transfer.Auth) {
	m.With(func(e *engine.Engine) {
		ring, auth := e.Keys()
		a = transfer.Auth{
			Group: m.group, Ring: ring, Sign: ring != nil && auth != engine.ReceiveOnly, RequireSigned: ring != nil && auth == engine.Enforce,
		}
	})
	return a
}

// dialAddress is where a peer teaches, seen from here: a link-local address is of the link that the peer was heard by.
func dialAddress(at netip.AddrPort, link string) string {
	if a := at.Addr(); a.Is6() && a.IsLinkLocalUnicast() {
		return net.JoinHostPort(a.WithZone(link).String(), strconv.Itoa(int(at.Port())))
	}
	return at.String()
}
