package vm

import (
	"errors"
	"time"
)

// job is what the host tells /init, as JSON in jobFile.
type job struct {
	Program  string        // path in the guest; empty: only come up and say so (trial boot)
	Args     []string      // arguments without the program's name
	Dir      string        // working directory
	Env      []string      // NAME=value
	Hostname string        // the guest's host name
	Timeout  time.Duration // after it the program gets SIGQUIT (Go: a dump of all goroutines), then SIGKILL
	Network  bool          // load the driver of the guest's network cards
}

// jobFile marks a guest of ours: /init is labrun only where this file is.
const jobFile = "/lab/job.json"

// Folders in the guest.
const (
	guestOut = "/lab/out" // $LAB_OUT: what is here goes to the host at the end
	guestBin = "/lab/bin" // the program
)

// Names of the virtio ports. Output and results do not share the kernel's
// console: that carries 0.6 MB/s, and the kernel writes to it whenever it likes.
const (
	portOut     = "lab.out"
	portErr     = "lab.err"
	portControl = "lab.control" // one line of JSON: report
	portFiles   = "lab.files"   // a tar of $LAB_OUT
)

var ports = []string{portOut, portErr, portControl, portFiles}

// report is the guest's last word.
type report struct {
	Exit     int    // exit status of the program, 128+N for signal N
	TimedOut bool   // the program was killed at the time limit
	Error    string // the program could not be run
}

// ErrTimeout says that the program was stopped at the time limit.
var ErrTimeout = errors.New("time limit of the guest reached")
