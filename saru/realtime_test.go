package saru

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// preferEnv makes the test binary ask for priority and memory, and tell what it got: the test's own process must not stay so.
const preferEnv = "SARU_TEST_PREFER"

// TestPreferChild is no test of its own: TestPrefer runs it in another process.
func TestPreferChild(t *testing.T) {
	if os.Getenv(preferEnv) == "" {
		return
	}
	if err := prefer(); err != nil {
		fmt.Println("refused:", err)
	}
	// New threads: each of these goroutines keeps one for itself.
	const more = 8
	ready, done := make(chan struct{}), make(chan struct{})
	for range more {
		go func() {
			runtime.LockOSThread()
			ready <- struct{}{}
			<-done
		}()
	}
	for range more {
		<-ready
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		policy, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, uintptr(tid), 0, 0)
		fmt.Println("policy:", policy, errno)
	}
	close(done)
	// What is given back while it is locked must come back as zeros (mem_linux.go, sysUnusedOS).
	for range 3 {
		if b := make([]byte, 8<<20); !allZero(b) {
			t.Fatal("new memory is not zero")
		}
		runtime.GC()
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Print(string(status))
}

// allZero reports whether memory is zero, and makes it something else.
func allZero(b []byte) bool {
	zero := true
	for i := range b {
		zero = zero && b[i] == 0
		b[i] = 1
	}
	return zero
}

// TestPrefer: every thread is real-time, those that come later too, and the memory is locked; without the right to, all goes on as it is.
func TestPrefer(t *testing.T) {
	run := func(command ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), command[0], append(command[1:], "-test.run=^TestPreferChild$", "-test.v")...)
		cmd.Env = append(os.Environ(), preferEnv+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v\n%s", command, err, out)
		}
		return string(out)
	}
	locked := func(out string) (kB int) {
		_, rest, _ := strings.Cut(out, "VmLck:")
		fmt.Sscan(rest, &kB)
		return kB
	}

	own := run(os.Args[0])
	switch refused := strings.Contains(own, "refused:"); {
	case refused && !mayPrefer(t):
		t.Logf("NOT SHOWN: this process may not be preferred:\n%s", own)
	case refused:
		t.Errorf("it was refused:\n%s", own)
	default:
		if n := strings.Count(own, "policy: 2 "); n < 8 || strings.Count(own, "policy:") != n {
			t.Errorf("not all threads are real-time:\n%s", own)
		}
		if locked(own) == 0 {
			t.Errorf("no memory is locked:\n%s", own)
		}
	}

	if os.Getuid() != 0 {
		return // the case below is the one above
	}
	without := run("setpriv", "--bounding-set", "-sys_nice,-ipc_lock", "--inh-caps", "-sys_nice,-ipc_lock", "prlimit", "--rtprio=0", "--memlock=8388608", os.Args[0])
	if !strings.Contains(without, "set real-time priority") || !strings.Contains(without, "lock memory") || strings.Contains(without, "policy: 2 ") || locked(without) != 0 {
		t.Errorf("without the capabilities:\n%s", without)
	}
}

// mayPrefer reports whether this process has the capabilities, in the machine's own user namespace, where alone they count.
func mayPrefer(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	users, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "CapEff:")
	caps, err := strconv.ParseUint(strings.Fields(rest)[0], 16, 64)
	const both = 1<<unix.CAP_SYS_NICE | 1<<unix.CAP_IPC_LOCK
	return err == nil && caps&both == both && strings.Join(strings.Fields(string(users)), " ") == "0 0 4294967295"
}
