package firecracker

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/nacrehq/nacre"
)

// version is a release of Firecracker.
type version struct{ major, minor, patch int }

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v.major, v.minor, v.patch) }

func (v version) compare(w version) int {
	return cmp.Or(cmp.Compare(v.major, w.major), cmp.Compare(v.minor, w.minor), cmp.Compare(v.patch, w.patch))
}

// oldest is the first release whose API the driver speaks.
var oldest = version{1, 12, 0}

// hole is a known defect of a range of releases.
type hole struct {
	cve      string
	jailer   bool // of the jailer, not the VMM
	from, to version
	what     string
}

// holes are refused by default. From Firecracker's security advisories.
var holes = [...]hole{
	{"CVE-2026-5747", false, version{1, 13, 0}, version{1, 14, 3}, "a guest can write outside of its memory over the PCI transport"},
	{"CVE-2026-5747", false, version{1, 15, 0}, version{1, 15, 0}, "a guest can write outside of its memory over the PCI transport"},
	{"CVE-2026-1386", true, version{0, 0, 0}, version{1, 13, 1}, "a local user can have the jailer overwrite files of the host"},
	{"CVE-2026-1386", true, version{1, 14, 0}, version{1, 14, 0}, "a local user can have the jailer overwrite files of the host"},
}

// checkVersion refuses releases that are too old or known to be unsafe.
func checkVersion(v version, jailer, allowHoles bool) error {
	what := "Firecracker"
	if jailer {
		what = "Firecracker's jailer"
	}
	if v.compare(oldest) < 0 {
		return nacre.Errorf(nacre.CodeUnsupported, "%s %s is too old; install %s or later (`nacre setup firecracker` does)", what, v, oldest)
	}
	for _, h := range holes {
		if h.jailer == jailer && !allowHoles && v.compare(h.from) >= 0 && v.compare(h.to) <= 0 {
			return nacre.Errorf(nacre.CodeUnsupported, "%s %s has a known hole, %s (%s); install a later release (`nacre setup firecracker` does)", what, v, h.cve, h.what)
		}
	}
	return nil
}

var versionText = regexp.MustCompile(`v(\d+)\.(\d+)\.(\d+)`)

// parseVersion reads the first version in a program's own words.
func parseVersion(text string) (v version, err error) {
	m := versionText.FindStringSubmatch(text)
	if m == nil {
		return v, fmt.Errorf("%.80q names no version", text)
	}
	for i, p := range []*int{&v.major, &v.minor, &v.patch} {
		if *p, err = strconv.Atoi(m[i+1]); err != nil {
			return v, err
		}
	}
	return v, nil
}

// askVersion runs the program.
func askVersion(program string) (version, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	if err != nil {
		return version{}, nacre.Wrap(nacre.CodeUnavailable, fmt.Errorf("%w: %.200s", err, out), program+" does not run on this host")
	}
	return parseVersion(string(out))
}
