package reconcile

import (
	"testing"
	"time"
)

// confirm puts passes together.
func confirm(passes ...Result) []Finding {
	var c Confirmation
	for i := range passes {
		c.Add(&passes[i])
	}
	return c.Confirmed()
}

func TestConfirm(t *testing.T) {
	const line = procWeb + procOne + "ESTABLISHED SYNC 880"
	e := entry{from: other, record: established(two), age: 20, clock: 5}
	newer := entry{from: other, record: established(two), age: 10, clock: 6}
	third := entry{from: 3, record: established(two), age: 20, clock: 5}
	for name, tt := range map[string]struct {
		first, second   string
		before, after   *entry
		elapsed         time.Duration
		want            Kind
		confirmed, both bool // both passes find something
	}{
		"still so":                           {line, line, &e, &e, 2 * time.Second, OtherServer, true, true},
		"too soon":                           {line, line, &e, &e, 2*time.Second - 1, 0, false, true},
		"the replica was updated":            {line, line, &e, &newer, time.Minute, 0, false, true},
		"the replica has another's":          {line, line, &e, &third, time.Minute, 0, false, true},
		"the kernel's state changed":         {line, procWeb + procOne + "FIN_WAIT SYNC 119", &e, &e, time.Minute, 0, false, true},
		"the kernel's server changed":        {line, procWeb + procThree + "ESTABLISHED SYNC 880", &e, &e, time.Minute, 0, false, true},
		"mended":                             {line, procWeb + procTwo + "ESTABLISHED SYNC 880", &e, &e, time.Minute, 0, false, false},
		"another kind":                       {line, procWeb + procTwo + "FIN_WAIT SYNC 119", &e, &e, time.Minute, 0, false, true},
		"another connection":                 {line, "TCP C0A80106 D431 0A000064 0050 0A010002 1F90 ESTABLISHED LOCAL 880", &e, nil, time.Minute, 0, false, true},
		"missing in the kernel":              {"", "", &e, &e, 2 * time.Second, MissingInKernel, true, true},
		"missing in the replica":             {line, line, nil, nil, 2 * time.Second, MissingInReplica, true, true},
		"missing, and its state changes":     {line, procWeb + procOne + "FIN_WAIT SYNC 119", nil, nil, time.Minute, 0, false, true},
		"deleted there, inserted here":       {"", line, &e, nil, time.Minute, 0, false, true},
		"nothing before":                     {procWeb + procTwo + "ESTABLISHED SYNC 880", line, &e, &e, time.Minute, 0, false, false},
		"expires early, timer still running": {procWeb + procTwo + "ESTABLISHED SYNC 500", procWeb + procTwo + "ESTABLISHED SYNC 499", &e, &e, 2 * time.Second, Expires, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := glance(t, t0, tt.first, tt.before), glance(t, t0.Add(tt.elapsed), tt.second, tt.after)
			if tt.both != (len(first.Findings) == 1 && len(second.Findings) == 1) {
				t.Fatalf("%d and %d findings", len(first.Findings), len(second.Findings))
			}
			got := confirm(first, second)
			if tt.confirmed != (len(got) == 1) {
				t.Fatalf("%d confirmed: %+v", len(got), got)
			}
			if tt.confirmed && (got[0].Kind != tt.want || got[0].At != t0.Add(tt.elapsed)) {
				t.Errorf("%v at %v", got[0].Kind, got[0].At)
			}
		})
	}
}

// What a list leaves out neither confirms nor refutes what others tell of an entry; and it is missing in the kernel if all leave it out.
func TestListsLeaveOut(t *testing.T) {
	const (
		here    = procWeb + procOne + "ESTABLISHED LOCAL 880"
		ended   = procWeb + procOne + "FIN_WAIT LOCAL 119"
		altered = procWeb + procThree + "ESTABLISHED SYNC 880"
	)
	known := entry{from: self, record: established(one), age: 20}
	e := entry{from: other, record: established(two), age: 20}
	newer := entry{from: other, record: established(two), age: 20, clock: 6}
	type look struct {
		line string
		e    *entry
	}
	for name, tt := range map[string]struct {
		looks []look
		want  string
	}{
		"all list it":                   {[]look{{here, nil}, {here, nil}, {here, nil}}, "missing_in_replica"},
		"the first leaves it out":       {[]look{{"", nil}, {here, nil}, {here, nil}}, ""}, // nothing is open after the first: the next audit's
		"the second leaves it out":      {[]look{{here, nil}, {"", nil}, {here, nil}}, "missing_in_replica"},
		"the third leaves it out":       {[]look{{here, nil}, {here, nil}, {"", nil}, {here, nil}}, "missing_in_replica"},
		"all but two leave it out":      {[]look{{here, nil}, {"", nil}, {"", nil}, {here, nil}}, "missing_in_replica"},
		"the third finds it first":      {[]look{{procWeb + procOne + "SYN_RECV LOCAL 59", nil}, {"", nil}, {here, nil}, {here, nil}}, ""},
		"two leave it out":              {[]look{{"", nil}, {here, nil}, {"", nil}}, ""},
		"reported, left out before":     {[]look{{here, nil}, {"", nil}, {here, &known}}, ""},
		"reported":                      {[]look{{here, nil}, {here, nil}, {here, &known}}, ""},
		"ended at last":                 {[]look{{here, nil}, {here, nil}, {ended, nil}}, ""},
		"ended at first":                {[]look{{here, nil}, {ended, nil}, {ended, nil}, {ended, nil}}, "missing_in_replica"},
		"altered, left out":             {[]look{{altered, &e}, {"", &e}, {altered, &e}}, "other_server"},
		"altered, left out at last":     {[]look{{altered, &e}, {altered, &e}, {"", &e}, {altered, &e}}, "other_server"},
		"altered, left out at first":    {[]look{{"", &e}, {altered, &e}, {altered, &e}, {altered, &e}}, "other_server"},
		"altered, updated meanwhile":    {[]look{{altered, &e}, {"", &e}, {altered, &newer}}, ""},
		"lost by the kernel":            {[]look{{"", &e}, {"", &e}, {"", &e}}, "missing_in_kernel"},
		"lost, and injected meanwhile":  {[]look{{"", &e}, {"", &newer}, {"", &newer}}, ""},
		"left out twice at first":       {[]look{{"", &e}, {"", &e}, {procWeb + procTwo + "ESTABLISHED SYNC 880", &e}}, ""},
		"left out twice at last":        {[]look{{procWeb + procTwo + "ESTABLISHED SYNC 880", &e}, {"", &e}, {"", &e}}, ""},
		"own, and left out by all":      {[]look{{"", &known}, {"", &known}, {"", &known}}, ""},
		"left out twice, in the middle": {[]look{{"", &e}, {procWeb + procTwo + "ESTABLISHED SYNC 880", &e}, {"", &e}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var c Confirmation
			for i, l := range tt.looks {
				if !c.Open() || i >= 3 && !c.Pending() {
					break
				}
				res := glance(t, t0.Add(time.Duration(i)*1200*time.Millisecond), l.line, l.e)
				c.Add(&res)
			}
			got := ""
			for _, f := range c.Confirmed() {
				got += f.Kind.String()
			}
			if got != tt.want {
				t.Errorf("confirmed %q, want %q", got, tt.want)
			}
		})
	}
	var c Confirmation
	if !c.Open() || len(c.Confirmed()) != 0 {
		t.Error("of nothing")
	}
}
