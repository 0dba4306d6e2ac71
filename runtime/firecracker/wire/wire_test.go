package wire

import (
	"bytes"
	"reflect"
	"strings"
	"testing"
)

func TestBoot(t *testing.T) {
	want := Boot{Hostname: "a box", MaxPIDs: 7, MTU: 1400, UpperMiB: 64}
	got, err := ParseBoot(strings.Fields("quiet " + want.CommandLine() + " root=/dev/vda"))
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "nacre", "nacre=", "nacre=!", "nacre=e30x"} {
		if _, err := ParseBoot(strings.Fields(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

func TestLastWord(t *testing.T) {
	for _, want := range []LastWord{{}, {OOM: true, Signal: 9}, {Exited: true, Status: 255}, {Failed: "no disk"}} {
		b := want.Encode()
		got, ok := DecodeLastWord(b)
		if !ok || !reflect.DeepEqual(got, want) || len(b) != LastWordSize {
			t.Errorf("%+v, %v", got, ok)
		}
		b[20] ^= 1
		if _, ok := DecodeLastWord(b); ok {
			t.Error("a damaged one is taken")
		}
	}
	if l := (LastWord{Failed: strings.Repeat("x", 1<<20)}).Encode(); len(l) != LastWordSize {
		t.Errorf("%d bytes", len(l))
	}
}

// The guest's root can write anything to its disk's end.
func FuzzDecodeLastWord(f *testing.F) {
	f.Add(LastWord{Exited: true, Status: 3}.Encode())
	f.Add(make([]byte, LastWordSize))
	f.Add([]byte{})
	f.Add(bytes.Repeat([]byte{0xff}, LastWordSize))
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, ok := DecodeLastWord(b); ok && (l.Status < 0 || l.Status > 255 || l.Signal < 0 || l.Signal > 64) {
			t.Errorf("%+v", l)
		}
	})
}
