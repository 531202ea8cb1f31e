package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"saru/lib/flow"
)

// PathSyncShare (POST) tells syncd who holds what, and streams ShareLine values;
// see Share and Client.TellShare.
const PathSyncShare = "/sync/share"

// Limits of a Share. They are those of saru's tables.
const (
	MaxShareMembers  = 64
	MaxShareVirtuals = 1024
	maxMemberName    = 63 // the longest --node
)

// NoMember stands in Share.Owner and Share.Next for nobody.
const NoMember = 255

// Share is what saru tells syncd: the share function, the allocation of its
// buckets by the table that counts, and what this director holds of them. It is
// the complete state each time, and may be told again as often as one likes.
//
// Tell it before a bucket is opened, and when one has been closed and flushed, at
// the latest with the table that gives it to somebody else. syncd stamps what its
// kernel reports of the buckets in Held with Term and Version, so these never go
// back: SyncShare.NewestTerm says which term a farm that is founded anew must
// exceed. A syncd that was started knows nothing of it and acts as without saru;
// SyncStatus.Incarnation tells one start from another.
type Share struct {
	// Term and Version order tables; both are at least 1, as syncd's own grants
	// without saru are of term 0.
	Term    uint32 `json:"term"`
	Version uint32 `json:"version"`
	// Buckets is their number, Seed that of the hash.
	Buckets uint32 `json:"buckets"`
	Seed    uint32 `json:"seed"`
	// Virtuals are the addresses that are shared. Connections of others are of no
	// bucket.
	Virtuals []ShareVirtual `json:"virtuals"`
	// Members are the --node names of the table's directors.
	Members []string `json:"members"`
	// Owner and Next have a byte for each bucket: an index of Members, or NoMember.
	// In JSON they are base64.
	Owner []byte `json:"owner"`
	Next  []byte `json:"next"`
	// Held are the buckets that this director holds, or may open as soon as syncd
	// has answered: "0-99,200", "all" or "none". The table must give them to it.
	Held string `json:"held"`
}

// ShareVirtual says how the connections of an address are shared.
type ShareVirtual struct {
	Address netip.Addr `json:"address"`
	// Sense is as in --sense; "" stands for that of flow.Default.
	Sense string `json:"sense,omitempty"`
	// Mask is how many bits of the source address count; 0 stands for all.
	Mask uint8 `json:"mask,omitempty"`
}

// ShareLine is one line of the answer to PathSyncShare: exactly one field is set.
type ShareLine struct {
	Progress *Progress     `json:"progress,omitempty"`
	Summary  *ShareSummary `json:"summary,omitempty"`
}

// ShareSummary says what became of a Share. It counts from before the answer, in
// any case.
type ShareSummary struct {
	// Ready says that this kernel has all entries of the buckets that the table
	// gives to this director: they may be opened. If not, Why says what is missing;
	// telling the same again waits again.
	Ready bool   `json:"ready"`
	Why   string `json:"why"`
	// Held is how many buckets this director holds, Kept of how many it has the
	// entries in its kernel.
	Held int `json:"held"`
	Kept int `json:"kept"`
	// Entries is how many were injected because of this Share until it was ready:
	// with --kernel_entries next those that were in the replica only.
	Entries uint64  `json:"entries"`
	TookMS  float64 `json:"took_ms"`
}

// TellShare tells syncd a Share and waits until it is ready, or syncd says that it
// is not. An error that wraps ErrBadRequest means that syncd refuses the Share, for
// instance as it knows a newer one, and goes on with what it had.
func (c *Client) TellShare(ctx context.Context, s *Share) (ShareSummary, error) {
	q, err := s.Query()
	if err != nil {
		return ShareSummary{}, err
	}
	return c.share(ctx, q)
}

// ForgetShare makes syncd forget what it was told, and whatever is told next is not
// compared with it. For who goes on without saru, and for a director that has closed
// everything and joins a line of tables whose terms and versions are lower.
func (c *Client) ForgetShare(ctx context.Context) (ShareSummary, error) {
	return c.share(ctx, url.Values{shareForget: {"true"}})
}

func (c *Client) share(ctx context.Context, q url.Values) (ShareSummary, error) {
	var sum *ShareSummary
	err := c.PostStream(ctx, PathSyncShare, q, func(text json.RawMessage) error {
		var line ShareLine
		if err := json.Unmarshal(text, &line); err != nil {
			return fmt.Errorf("answer to %s: %w", PathSyncShare, err)
		}
		if line.Summary != nil {
			sum = line.Summary
		}
		return nil
	})
	if err != nil {
		return ShareSummary{}, err
	}
	if sum == nil {
		return ShareSummary{}, fmt.Errorf("answer to %s: it has no summary", PathSyncShare)
	}
	return *sum, nil
}

// Parameters of PathSyncShare.
const (
	shareState  = "share"
	shareForget = "forget"
)

// Query returns the share as parameters of PathSyncShare.
func (s *Share) Query() (url.Values, error) {
	if err := s.Check(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode the share: %w", err)
	}
	return url.Values{shareState: {string(b)}}, nil
}

// ParseShare reads what Query returns; nil: what was told is to be forgotten. Its
// errors wrap ErrBadRequest. Fields that it does not know are refused, as their
// effect would be missed.
func ParseShare(q url.Values) (*Share, error) {
	if err := Parameters(q, shareState, shareForget); err != nil {
		return nil, err
	}
	text, told := q.Get(shareState), q.Has(shareState)
	switch {
	case q.Has(shareForget) == told:
		return nil, fmt.Errorf("%w: one of %s and %s", ErrBadRequest, shareState, shareForget)
	case !told && q.Get(shareForget) != "true":
		return nil, fmt.Errorf("%w: %s: must be true", ErrBadRequest, shareForget)
	case !told:
		return nil, nil
	}
	var s Share
	d := json.NewDecoder(strings.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(&s)
	if err == nil {
		if _, more := d.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows it")
		}
	}
	if err == nil {
		err = s.Check()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBadRequest, shareState, err)
	}
	return &s, nil
}

// Check says what is wrong with the share.
func (s *Share) Check() error {
	switch {
	case s.Term == 0 || s.Version == 0:
		return fmt.Errorf("term %d, version %d: both are from 1", s.Term, s.Version)
	case len(s.Virtuals) > MaxShareVirtuals:
		return fmt.Errorf("%d virtual addresses: at most %d", len(s.Virtuals), MaxShareVirtuals)
	case len(s.Members) > MaxShareMembers:
		return fmt.Errorf("%d members: at most %d", len(s.Members), MaxShareMembers)
	}
	whole := flow.Default
	whole.Buckets, whole.Seed = s.Buckets, s.Seed
	if err := whole.Check(); err != nil {
		return err
	}
	if _, err := s.Functions(); err != nil {
		return err
	}
	for i, name := range s.Members {
		switch {
		case name == "" || len(name) > maxMemberName || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }):
			return fmt.Errorf("member %q: 1 to %d printable characters", name, maxMemberName)
		case slices.Contains(s.Members[:i], name):
			return fmt.Errorf("member %q is there twice", name)
		}
	}
	if len(s.Owner) != int(s.Buckets) || len(s.Next) != int(s.Buckets) {
		return fmt.Errorf("owners of %d and next owners of %d buckets: there are %d", len(s.Owner), len(s.Next), s.Buckets)
	}
	for b, owner := range s.Owner {
		next := s.Next[b]
		for _, m := range []byte{owner, next} {
			if m != NoMember && int(m) >= len(s.Members) {
				return fmt.Errorf("bucket %d of member %d: there are %d", b, m, len(s.Members))
			}
		}
		if owner == next && owner != NoMember {
			return fmt.Errorf("bucket %d: %s is owner and next owner", b, s.Members[owner])
		}
	}
	if _, err := flow.ParseBuckets(s.Held, int(s.Buckets)); err != nil {
		return fmt.Errorf("held: %w", err)
	}
	return nil
}

// Functions returns the share function of each virtual address.
func (s *Share) Functions() (map[netip.Addr]flow.Function, error) {
	all := make(map[netip.Addr]flow.Function, len(s.Virtuals))
	for _, v := range s.Virtuals {
		a := v.Address
		if !a.IsValid() || a != a.Unmap() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return nil, fmt.Errorf("virtual address %q: must be the address of a virtual service", a)
		}
		if _, twice := all[a]; twice {
			return nil, fmt.Errorf("virtual address %s is there twice", a)
		}
		f := flow.Default
		f.Buckets, f.Seed = s.Buckets, s.Seed
		if v.Sense != "" {
			sense, err := flow.ParseSense(v.Sense)
			if err != nil {
				return nil, fmt.Errorf("virtual address %s: %w", a, err)
			}
			f.Sense = sense
		}
		if v.Mask != 0 {
			if a.Is4() {
				f.Mask4 = v.Mask
			} else {
				f.Mask6 = v.Mask
			}
		}
		if err := f.Check(); err != nil {
			return nil, fmt.Errorf("virtual address %s: %w", a, err)
		}
		all[a] = f
	}
	return all, nil
}

// Of returns which buckets are a member's, by Owner or Next.
func (s *Share) Of(name string, by []byte) []bool {
	of := make([]bool, len(by))
	if i := slices.Index(s.Members, name); i >= 0 {
		for b, m := range by {
			of[b] = int(m) == i
		}
	}
	return of
}

// SyncShare is what syncd knows of saru.
type SyncShare struct {
	// Told says that a Share was told since the start, and not forgotten; Term and
	// Version are its own, else 0.
	Told    bool   `json:"told"`
	Term    uint32 `json:"term"`
	Version uint32 `json:"version"`
	// Held is how many buckets this director holds.
	Held int `json:"held"`
	// Kept is of how many buckets this kernel has the entries.
	Kept int `json:"kept"`
	// Ready says that it has all those of the buckets that the table gives to this
	// director; Settled, that it has those of which it is the next owner as well.
	Ready   bool `json:"ready"`
	Settled bool `json:"settled"`
	// NewestTerm is the highest term that this syncd was told, or has seen in a
	// peer's records. Tables of a lower term would lose against those.
	NewestTerm uint32 `json:"newest_term"`
}
