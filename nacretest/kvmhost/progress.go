package kvmhost

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const resultMark = "KVMHOST-RESULT "

// Report has the end of a test known at once. Of a test that is a part of another one
// the package testing tells with that one's end, which a host that stands still does
// not live to see: what was not told is run again on the next host. It should be the
// first that a test does. A repeat is no error.
func Report(t testing.TB) {
	if !Emulated() {
		return
	}
	t.Cleanup(func() {
		result := "PASS"
		if t.Failed() {
			result = "FAIL"
		}
		fmt.Printf("%s%s %s\n", resultMark, result, t.Name())
	})
}

// progress is what the lines of `go test -v` tell.
type progress struct {
	ended   []string // tests, and their own first parts, in the order of their ends
	failed  []string
	skipped []string
	now     string // the one that began last
}

var resultLine = regexp.MustCompile(`^(?:--- |` + resultMark + `)(PASS|FAIL|SKIP):? ([^ \n]+)`)

// see takes the next line and tells whether it is for people.
func (p *progress) see(line string) bool {
	if _, name, ok := strings.Cut(line, "=== RUN   "); ok {
		p.now = strings.TrimSpace(name)
		return true
	}
	r := resultLine.FindStringSubmatch(line)
	if r == nil {
		return true
	}
	if strings.Count(r[2], "/") < 2 && !slices.Contains(p.ended, r[2]) {
		p.ended = append(p.ended, r[2])
	}
	if r[1] == "FAIL" && !slices.Contains(p.failed, r[2]) {
		p.failed = append(p.failed, r[2])
	}
	if r[1] == "SKIP" && !slices.Contains(p.skipped, r[2]) {
		p.skipped = append(p.skipped, r[2])
	}
	return !strings.HasPrefix(line, resultMark)
}

// count says what has become of the tests. Why one was skipped it has said itself.
func (p *progress) count(where string) string {
	text := fmt.Sprintf("on %s: %d ended, %d failed, %d skipped", where, len(p.ended), len(p.failed), len(p.skipped))
	if len(p.skipped) > 0 {
		text += ": " + strings.Join(p.skipped, " ")
	}
	return text
}

// skip is a pattern, for -test.skip, of what has ended.
func (p *progress) skip() string {
	var alternatives []string
	for _, name := range p.ended {
		parts := strings.Split(name, "/")
		for i, part := range parts {
			parts[i] = "^" + regexp.QuoteMeta(part) + "$"
		}
		alternatives = append(alternatives, strings.Join(parts, "/"))
	}
	return strings.Join(alternatives, "|")
}
