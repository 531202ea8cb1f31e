package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"saru/lib/control"
)

// progressWidth is what any terminal has; a longer line would wrap and stay.
const progressWidth = 79

// progress is the last line of a terminal while a daemon works. On anything else
// it is nothing.
type progress struct {
	out   io.Writer // nil: no terminal
	shown bool
}

// newProgress shows progress on w if that is a terminal.
func newProgress(w io.Writer) *progress {
	if f := terminal(w); f != nil {
		return &progress{out: f}
	}
	return &progress{}
}

// terminal returns w if it is a terminal, or nil.
func terminal(w io.Writer) *os.File {
	if f, ok := w.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return f
		}
	}
	return nil
}

func (p *progress) show(s control.Progress) {
	if p.out == nil {
		return
	}
	line := printable(progressText(s))
	if r := []rune(line); len(r) > progressWidth {
		line = string(r[:progressWidth])
	}
	fmt.Fprintf(p.out, "\r\x1b[K%s", line)
	p.shown = true
}

func progressText(s control.Progress) string {
	switch {
	case s.Total > 0:
		return fmt.Sprintf("%s: %d %% (%d of %d)", s.Phase, min(100, 100*s.Done/s.Total), s.Done, s.Total)
	case s.Done > 0:
		return fmt.Sprintf("%s: %d", s.Phase, s.Done)
	}
	return s.Phase
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.shown = false
	}
}

// over returns a writer to w that clears the progress before anything is printed.
func (p *progress) over(w io.Writer) io.Writer { return progressOver{p, w} }

type progressOver struct {
	p *progress
	w io.Writer
}

func (o progressOver) Write(b []byte) (int, error) {
	o.p.clear()
	return o.w.Write(b)
}

// work asks a daemon for something that takes time and returns its last line's
// summary: by POST if there are parameters, by GET if they are nil. Each line of the
// answer is printed as it came with --json; otherwise progress is shown. part says
// what is in a line; it handles what is neither progress nor summary itself.
func work[Line, Summary any](cmd *cobra.Command, a *app, s service, p *progress, path string, parameters url.Values,
	part func(*Line) (*control.Progress, *Summary, error)) (*Summary, error) {
	defer p.clear()
	var result *Summary
	each := func(raw json.RawMessage) error {
		if a.json {
			if _, err := a.out.Write(append(raw, '\n')); err != nil {
				return err
			}
		}
		var line Line
		if err := json.Unmarshal(raw, &line); err != nil {
			return fmt.Errorf("read the answer to %s: %w", path, err)
		}
		news, summary, err := part(&line)
		if summary != nil {
			result = summary
		}
		if news != nil && !a.json {
			p.show(*news)
		}
		return err
	}
	var err error
	if parameters == nil {
		err = s.Stream(cmd.Context(), path, each)
	} else {
		err = s.PostStream(cmd.Context(), path, parameters, each)
	}
	if err = s.explain(err); err == nil && result == nil {
		err = fmt.Errorf("%s: the answer ends without a result", s.name)
	}
	return result, err
}

// verdict prints a result for people, and makes the exit status of it.
func verdict[Summary any](a *app, s *Summary, good bool, printed func(io.Writer, *Summary) error) error {
	if !a.json {
		if err := printed(a.out, s); err != nil {
			return err
		}
	}
	if !good {
		return bad()
	}
	return nil
}
