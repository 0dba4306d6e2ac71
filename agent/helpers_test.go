package agent_test

import (
	"net/http"
	"os"
	"syscall"
)

func owner(fi os.FileInfo) (uid, gid uint32) {
	st := fi.Sys().(*syscall.Stat_t)
	return st.Uid, st.Gid
}

func mkfifo(path string) error { return syscall.Mkfifo(path, 0o666) }

var httpClient = &http.Client{}
