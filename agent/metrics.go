package agent

import (
	"bufio"
	"bytes"
	"math"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nacrehq/nacre/agent/envd"
	"golang.org/x/sys/unix"
)

// handleMetrics answers what only the guest knows.
func (a *Agent) handleMetrics(w http.ResponseWriter, _ *http.Request) {
	m := envd.MetricsResponse{
		Timestamp:  time.Now().Unix(),
		CPUCount:   runtime.NumCPU(),
		CPUUsedPct: a.cpu.used(),
	}
	mem := procFields("/proc/meminfo")
	m.MemTotal = mem["MemTotal"] << 10
	m.MemCache = (mem["Cached"] + mem["Buffers"] + mem["SReclaimable"]) << 10
	free := mem["MemFree"]
	if v, ok := mem["MemAvailable"]; ok {
		free = v
	}
	m.MemUsed = max(0, m.MemTotal-free<<10)
	var st unix.Statfs_t
	if unix.Statfs(a.cfg.DiskPath, &st) == nil {
		m.DiskTotal = int64(st.Blocks) * st.Bsize
		m.DiskUsed = int64(st.Blocks-st.Bfree) * st.Bsize
	}
	writeJSON(w, http.StatusOK, m)
}

// procFields reads "Name: number" lines.
func procFields(path string) map[string]int64 {
	out := map[string]int64{}
	data, err := os.ReadFile(path)
	if err != nil {
		return out
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		name, rest, ok := strings.Cut(sc.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) == 0 {
			continue
		}
		if n, err := strconv.ParseInt(fields[0], 10, 64); err == nil {
			out[name] = n
		}
	}
	return out
}

// cpuMeter tells how busy the processors were since it was last asked.
type cpuMeter struct {
	mu          sync.Mutex
	busy, total float64
}

// used is 100 for one busy processor. Guests whose kernel does not account
// answer 0: the host's accounts are the ones to show then.
func (c *cpuMeter) used() float64 {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	fields := strings.Fields(string(line))
	if len(fields) < 5 || fields[0] != "cpu" {
		return 0
	}
	var total, idle float64
	for i, f := range fields[1:min(len(fields), 9)] { // guest time is part of user
		v, err := strconv.ParseFloat(f, 64)
		if err != nil {
			return 0
		}
		total += v
		if i == 3 || i == 4 { // idle, iowait
			idle += v
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	dBusy, dTotal := total-idle-c.busy, total-c.total
	c.busy, c.total = total-idle, total
	if dTotal <= 0 || dBusy < 0 {
		return 0
	}
	return math.Round(dBusy/dTotal*float64(runtime.NumCPU())*10000) / 100
}
