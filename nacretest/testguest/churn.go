package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// churning is what "churn" does until "churned" looks at what is left.
var churning struct {
	dir  string
	stop chan struct{}
	all  sync.WaitGroup
	keep []int // files that must be whole
	err  error
}

// churn writes files and deletes half of them, again and again.
func churn(dir string) error {
	c := &churning
	c.dir, c.stop = dir, make(chan struct{})
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	c.all.Go(func() {
		for n := 0; c.err == nil; n++ {
			select {
			case <-c.stop:
				return
			default:
			}
			c.err = os.WriteFile(churnFile(n), churnContent(n), 0o644)
			c.keep = append(c.keep, n)
			if len(c.keep) > 40 {
				for i := range 20 {
					c.err = errors.Join(c.err, os.Remove(churnFile(c.keep[2*i])))
					c.keep[i] = c.keep[2*i+1]
				}
				c.keep = append(c.keep[:20], c.keep[40:]...)
			}
		}
	})
	return nil
}

func churnFile(n int) string { return filepath.Join(churning.dir, strconv.Itoa(n)) }

// churnContent is 64 KiB to 1 MiB that only this file has.
func churnContent(n int) []byte {
	r := rand.NewPCG(uint64(n), 1)
	b := make([]byte, 0, 1<<20)
	for size := 64<<10 + int(r.Uint64()%(15<<16)); len(b) < size; {
		v := r.Uint64()
		for range 8 {
			b = append(b, byte(v))
			v >>= 8
		}
	}
	return b
}

// churned stops it and reads what is left, from the disk. It returns how many files
// were written.
func churned() (n int64, err error) {
	c := &churning
	close(c.stop)
	c.all.Wait()
	if c.err != nil {
		return 0, c.err
	}
	syscall.Sync() // what is not written stays in the cache
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return 0, err
	}
	for _, f := range c.keep {
		b, err := os.ReadFile(churnFile(f))
		if err != nil {
			return 0, err
		}
		if !bytes.Equal(b, churnContent(f)) {
			return 0, fmt.Errorf("file %d has another content", f)
		}
		n = int64(f) + 1
	}
	return n, nil
}
