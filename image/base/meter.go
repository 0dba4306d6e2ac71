package base

import (
	"regexp"
	"strconv"
	"strings"
)

// The parts of a build, by the time that they take, in thousandths.
const (
	progressTotal  = 1000
	meterInstall   = 30  // from here packages are counted
	meterCustomize = 860 // to here
	meterImage     = 880
	meterCheck     = 960
)

// usualPackages is how many there are to install, until apt has said it.
const usualPackages = 560

// meter turns the output of mmdebstrap into progress: apt says how many packages
// it will install, and each is fetched, unpacked and set up once.
type meter struct {
	report  func(step string, done, total int64)
	done    int64
	events  int64
	planned int64
	plans   int
}

func newMeter(report func(string, int64, int64)) *meter { return &meter{report: report} }

func (m *meter) at(step string, done int64) {
	m.done = max(m.done, done)
	m.report(step, m.done, progressTotal)
}

func (m *meter) line(s string) {
	if n := plan(s); n > 0 {
		m.planned += n
		m.plans++ // the essential packages first, then the rest
		return
	}
	step := ""
	switch {
	case m.plans == 0:
		return // package lists are fetched, too
	case strings.HasPrefix(s, "Get:"):
		step = "downloading packages"
	case strings.HasPrefix(s, "Unpacking "), strings.HasPrefix(s, "Setting up "):
		step = "installing packages" // the two alternate
	default:
		return
	}
	m.events++
	all := m.planned
	if m.plans < 2 {
		all = max(all, usualPackages)
	}
	m.at(step, min(meterInstall+(meterCustomize-meterInstall)*m.events/(3*all), meterCustomize))
}

// plan reads apt's summary: "0 upgraded, 89 newly installed, 0 to remove ...".
func plan(s string) int64 {
	f := regexp.MustCompile(`^\d+ upgraded, (\d+) newly installed,`).FindStringSubmatch(s)
	if f == nil {
		return 0
	}
	n, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		return 0
	}
	return n
}
