package meter

import (
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hostClock reads the kernel's clock since its boot, and the name that it gave itself
// then.
func hostClock() SteadyClock {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	boot := strings.TrimSpace(string(id))
	start := time.Now()
	return func() (time.Duration, string) {
		var ts unix.Timespec
		if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
			return time.Since(start), "process " + start.Format(time.RFC3339Nano)
		}
		return time.Duration(ts.Nano()), boot
	}
}
