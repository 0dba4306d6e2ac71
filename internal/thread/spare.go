package thread

import (
	"runtime"
	"sync"
)

// Spare makes n threads that stay with the process for when it next needs one. Go ends a
// program that the kernel refuses a thread, and a process beside others under one limit
// of tasks (a guest's agent beside the guest's programs) is refused when they are at it.
func Spare(n int) {
	var made, used sync.WaitGroup
	made.Add(n)
	all := make(chan struct{})
	for range n {
		used.Go(func() {
			runtime.LockOSThread() // who is locked has one of its own
			defer runtime.UnlockOSThread()
			made.Done()
			<-all
		})
	}
	made.Wait()
	close(all)
	used.Wait()
}
