package kvmhost

import "time"

// ticks reads the processor's time stamp counter.
func ticks() uint64

// tickRate is how many thousand times a second the counter counts. The emulated
// processor has the same one. What its kernel measures instead, on a busy machine, is
// nonsense, and KVM runs no guest with it.
func tickRate() int {
	begin, from := time.Now(), ticks()
	time.Sleep(300 * time.Millisecond)
	to, took := ticks(), time.Since(begin)
	return int(float64(to-from) / took.Seconds() / 1000)
}
