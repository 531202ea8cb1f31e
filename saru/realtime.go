package saru

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// schedRR is SCHED_RR of linux/sched.h: before every ordinary process, and taking turns with others of the same priority.
const schedRR = 2

// prefer asks the kernel to run this process before ordinary ones and to keep it in memory. The daemon is as right without either, but on a busy
// host its lease may then end because it is renewed late.
func prefer() error { return errors.Join(realTime(), lockMemory()) }

// realTime gives every thread the lowest real-time priority: that is above all ordinary processes, and below whatever else is real-time, such as interrupt threads.
// Threads that the Go runtime makes later inherit it, because SCHED_RESET_ON_FORK is not set; so does a program that is started, of which there is modprobe at the most.
// The kernel keeps 5 % of the time for others even if this process should spin (sched_rt_runtime_us).
func realTime() error {
	seen := map[int]bool{}
	// A thread that is not done yet may make another one meanwhile: until there is no new one.
	for again := true; again; {
		again = false
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return fmt.Errorf("list own threads: %w", err)
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || seen[tid] {
				continue
			}
			seen[tid], again = true, true
			priority := int32(1) // struct sched_param
			_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, uintptr(tid), schedRR, uintptr(unsafe.Pointer(&priority)))
			if errno != 0 && errno != unix.ESRCH { // it may have ended
				return fmt.Errorf("set real-time priority: %w", errno)
			}
		}
	}
	return nil
}

// lockMemory keeps what this process has in memory, and whatever comes later, from being paged out. Pages are locked as they are first used, since the Go runtime
// maps far more than it uses: brought in at once that would be some 40 MB. The program itself is brought in at once, so that what a take-over needs for the first time is not read from a
// busy disk then.
func lockMemory() error {
	limited, err := memoryLimited()
	if err != nil {
		return err
	}
	if limited {
		return errors.New("lock memory: RLIMIT_MEMLOCK is finite")
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find the own program: %w", err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return fmt.Errorf("read own mappings: %w", err)
	}
	for line := range strings.Lines(string(maps)) {
		// 00400000-00452000 r-xp 00000000 08:02 173521 /usr/sbin/saru
		if !strings.HasSuffix(line, " "+program+"\n") {
			continue
		}
		var begin, end uintptr
		if _, err := fmt.Sscanf(line, "%x-%x ", &begin, &end); err != nil {
			return fmt.Errorf("read own mappings: %w", err)
		}
		if _, _, errno := unix.Syscall(unix.SYS_MLOCK, begin, end-begin, 0); errno != 0 {
			return fmt.Errorf("bring the program into memory: %w", errno)
		}
	}
	return nil
}

// memoryLimited reports whether a limit of locked memory could end the process later: with MCL_FUTURE each new mapping that exceeds it fails (mmap(2)), and the Go
// runtime then throws. Who has CAP_IPC_LOCK has no limit (mm/mlock.c), which mlockall itself proves if more is mapped than the limit allows.
func memoryLimited() (bool, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		return false, fmt.Errorf("read RLIMIT_MEMLOCK: %w", err)
	}
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return false, fmt.Errorf("read own size: %w", err)
	}
	var pages uint64
	if _, err := fmt.Sscan(string(b), &pages); err != nil {
		return false, fmt.Errorf("read own size: %w", err)
	}
	return limit.Cur != unix.RLIM_INFINITY && limit.Cur >= pages*uint64(os.Getpagesize()), nil
}
