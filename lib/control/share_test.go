package control

import (
	"context"
	"errors"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"saru/lib/flow"
)

func goodShare() Share {
	s := Share{
		Term: 3, Version: 14, Buckets: 4096, Seed: flow.DefaultSeed,
		Virtuals: []ShareVirtual{
			{Address: netip.MustParseAddr("192.0.2.1")},
			{Address: netip.MustParseAddr("192.0.2.2"), Sense: "src-addr", Mask: 24},
			{Address: netip.MustParseAddr("2001:db8::1"), Sense: "dst-port,src-addr", Mask: 64},
		},
		Members: []string{"d1", "d2"}, Owner: make([]byte, 4096), Next: make([]byte, 4096), Held: "0-9,4095",
	}
	for b := range s.Owner {
		s.Owner[b], s.Next[b] = byte(b%2), byte((b+1)%2)
	}
	s.Owner[7], s.Next[7] = NoMember, NoMember
	return s
}

var plainAddr = cmpopts.EquateComparable(netip.Addr{})

// TestShare: what saru tells arrives as it is, and the answer comes back.
func TestShare(t *testing.T) {
	var s Server
	var got []*Share
	s.HandleWork("POST "+PathSyncShare, func(_ context.Context, q url.Values, emit func(any) error) error {
		share, err := ParseShare(q)
		if err != nil {
			return err
		}
		if got = append(got, share); share != nil && share.Version == 1 {
			return errors.New("out of order")
		}
		if share == nil {
			return emit(ShareLine{Progress: &Progress{Phase: "no summary follows"}})
		}
		return errors.Join(emit(ShareLine{Progress: &Progress{Phase: "bringing", Done: 1}}), emit(ShareLine{Summary: &ShareSummary{Ready: true, Held: 11}}))
	})
	client, _ := serve(t, &s)
	share := goodShare()
	sum, err := client.TellShare(t.Context(), &share)
	if err != nil || !sum.Ready || sum.Held != 11 {
		t.Errorf("told: %+v, %v", sum, err)
	}
	if diff := cmp.Diff([]*Share{&share}, got, plainAddr); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if _, err := client.ForgetShare(t.Context()); err == nil || !strings.Contains(err.Error(), "no summary") || got[1] != nil {
		t.Errorf("forget: %v, %v", got[1], err)
	}
	share.Version = 1
	if _, err := client.TellShare(t.Context(), &share); err == nil || err.Error() != "out of order" {
		t.Errorf("failed: %v", err)
	}
	share.Held = "5-"
	if _, err := client.TellShare(t.Context(), &share); err == nil || len(got) != 3 {
		t.Errorf("what is wrong is sent: %v", err)
	}
}

// TestLargestShare: a share of the most buckets, none of which has the owner of its neighbour, fits into a request.
func TestLargestShare(t *testing.T) {
	s := Share{
		Term: 1<<32 - 1, Version: 1<<32 - 1, Buckets: flow.MaxBuckets, Seed: 1<<32 - 1,
		Owner: make([]byte, flow.MaxBuckets), Next: make([]byte, flow.MaxBuckets),
	}
	for m := range MaxShareMembers {
		s.Members = append(s.Members, strings.Repeat(string(rune('0'+m)), maxMemberName))
	}
	for v := range MaxShareVirtuals {
		a := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(v >> 8), 15: byte(v)})
		s.Virtuals = append(s.Virtuals, ShareVirtual{Address: a, Sense: "src-addr,src-port,dst-addr,dst-port", Mask: 128})
	}
	var held []uint16
	for b := range s.Owner {
		s.Owner[b], s.Next[b] = byte(b%64), byte((b+1)%64)
		if b%2 == 0 {
			held = append(held, uint16(b))
		}
	}
	s.Held = flow.FormatBuckets(held, flow.MaxBuckets)
	var srv Server
	srv.HandleWork("POST "+PathSyncShare, func(_ context.Context, q url.Values, emit func(any) error) error {
		got, err := ParseShare(q)
		if err != nil {
			return err
		}
		return emit(ShareLine{Summary: &ShareSummary{Ready: cmp.Equal(&s, got, plainAddr)}})
	})
	client, _ := serve(t, &srv)
	if sum, err := client.TellShare(t.Context(), &s); err != nil || !sum.Ready {
		t.Errorf("arrives as it is: %v, error %v", sum.Ready, err)
	}
}

func TestShareRefuses(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Share)
		want   string // "": it is good
	}{
		{"good", func(*Share) {}, ""},
		{"nobody is a member", func(s *Share) { s.Members, s.Owner, s.Next = nil, nobody(), nobody() }, ""},
		{"no virtual address", func(s *Share) { s.Virtuals = nil }, ""},
		{"term", func(s *Share) { s.Term = 0 }, "term 0, version 14: both are from 1"},
		{"version", func(s *Share) { s.Version = 0 }, "term 3, version 0: both are from 1"},
		{"no buckets", func(s *Share) { s.Buckets = 0 }, "share function of 0 buckets: 1 to 65536"},
		{"seed", func(s *Share) { s.Seed = 0 }, "seed 0"},
		{"more buckets than owners", func(s *Share) { s.Buckets = 4097 }, "owners of 4096 and next owners of 4096 buckets: there are 4097"},
		{"fewer next owners", func(s *Share) { s.Next = s.Next[1:] }, "next owners of 4095"},
		{"owner", func(s *Share) { s.Owner[9] = 2 }, "bucket 9 of member 2: there are 2"},
		{"next owner", func(s *Share) { s.Next[9] = 254 }, "bucket 9 of member 254: there are 2"},
		{"one for both", func(s *Share) { s.Next[9] = s.Owner[9] }, "bucket 9: d2 is owner and next owner"},
		{"member without a name", func(s *Share) { s.Members[1] = "" }, `member "": 1 to 63`},
		{"member with a space", func(s *Share) { s.Members[1] = "d 2" }, `member "d 2"`},
		{"member twice", func(s *Share) { s.Members[1] = "d1" }, `member "d1" is there twice`},
		{"many members", func(s *Share) { s.Members = make([]string, 65) }, "65 members: at most 64"},
		{"many addresses", func(s *Share) { s.Virtuals = make([]ShareVirtual, 1025) }, "1025 virtual addresses: at most 1024"},
		{"address twice", func(s *Share) { s.Virtuals[1].Address = s.Virtuals[0].Address }, "192.0.2.1 is there twice"},
		{"no address", func(s *Share) { s.Virtuals[1].Address = netip.Addr{} }, "must be the address of a virtual service"},
		{"mapped address", func(s *Share) { s.Virtuals[1].Address = netip.MustParseAddr("::ffff:192.0.2.9") }, "must be the address of a virtual service"},
		{"group", func(s *Share) { s.Virtuals[1].Address = netip.MustParseAddr("224.0.0.1") }, "must be the address of a virtual service"},
		{"sense", func(s *Share) { s.Virtuals[1].Sense = "src" }, `virtual address 192.0.2.2: unknown field "src"`},
		{"mask", func(s *Share) { s.Virtuals[1].Mask = 33 }, "virtual address 192.0.2.2: share function with 33 bits"},
		{"held", func(s *Share) { s.Held = "4096" }, `held: bucket "4096"`},
		{"nothing held", func(s *Share) { s.Held = "" }, "held: bucket"},
	}
	for _, tt := range tests {
		s := goodShare()
		tt.change(&s)
		err := s.Check()
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
	for query, want := range map[string]string{
		"":                            "bad request: one of share and forget",
		"share={}&forget=true":        "bad request: one of share and forget",
		"forget=no":                   "bad request: forget: must be true",
		"share={}&x=1":                "bad request: x: no such parameter",
		"share={}":                    "bad request: share: term 0",
		"share=":                      "bad request: share: EOF",
		"share={\"term\":-1}":         "bad request: share: json",
		"share={\"terms\":1}":         "bad request: share: json: unknown field",
		"share={\"owner\":\"no\"}":    "bad request: share: illegal base64",
		"share={\"term\":1}{}":        "bad request: share: something follows it",
		"share={\"term\":1}&share={}": "bad request: share: given 2 times",
	} {
		q, err := url.ParseQuery(query)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := ParseShare(q); err == nil || !errors.Is(err, ErrBadRequest) || !strings.Contains(err.Error(), want) || s != nil {
			t.Errorf("%q: error %v, want %q", query, err, want)
		}
	}
}

func nobody() []byte {
	b := make([]byte, 4096)
	for i := range b {
		b[i] = NoMember
	}
	return b
}

func TestShareFunctions(t *testing.T) {
	s := goodShare()
	got, err := s.Functions()
	if err != nil {
		t.Fatal(err)
	}
	masked, six := flow.Default, flow.Default
	masked.Sense, masked.Mask4 = flow.SenseOf(flow.SrcAddr), 24
	six.Sense, six.Mask6 = flow.SenseOf(flow.SrcAddr, flow.DstPort), 64
	want := map[netip.Addr]flow.Function{s.Virtuals[0].Address: flow.Default, s.Virtuals[1].Address: masked, s.Virtuals[2].Address: six}
	if diff := cmp.Diff(want, got, plainAddr); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if of := s.Of("d2", s.Owner); of[0] || !of[1] || of[7] || len(of) != 4096 {
		t.Errorf("d2 owns %v", of[:8])
	}
	if of := s.Of("d3", s.Owner); of[0] || of[1] {
		t.Error("who is no member owns some")
	}
}
