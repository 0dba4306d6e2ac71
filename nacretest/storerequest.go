package nacretest

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nacrehq/nacre"
)

// TestRequestStore is the contract of nacre.RequestStore.
func TestRequestStore(t *testing.T, open func(t *testing.T) nacre.RequestStore) {
	store := open(t)
	t.Run("OnceThenReplayed", func(t *testing.T) { requestReplayed(t, store) })
	t.Run("AnotherBody", func(t *testing.T) { requestOtherBody(t, store) })
	t.Run("DeadHolder", func(t *testing.T) { requestTakenOver(t, store) })
	t.Run("ManyAtOnce", func(t *testing.T) { requestAtOnce(t, store) })
	t.Run("Fault36_TwoTeams", func(t *testing.T) { requestTwoTeams(t, store) })
	t.Run("Forget", func(t *testing.T) { requestForgotten(t, store) })
	t.Run("Age", func(t *testing.T) { requestAge(t, store) })
	t.Run("BadKeys", func(t *testing.T) { requestBad(t, store) })
}

func sampleRequest(holder string) nacre.KeptRequest {
	return nacre.KeptRequest{
		RequestKey: nacre.RequestKey{TeamID: nacre.NewTeamID(), Route: "POST /sandboxes", Key: "k é"},
		Body:       [32]byte{1}, Holder: holder,
		Lease: storeEpoch.Add(time.Minute), CreatedAt: storeEpoch,
	}
}

func claim(t *testing.T, store nacre.RequestStore, r nacre.KeptRequest, now time.Time) (nacre.KeptRequest, bool) {
	t.Helper()
	kept, claimed, err := store.ClaimRequest(t.Context(), r, now, storeEpoch.Add(-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	return kept, claimed
}

func requestReplayed(t *testing.T, store nacre.RequestStore) {
	r := sampleRequest("a")
	kept, claimed := claim(t, store, r, storeEpoch)
	if !claimed {
		t.Fatal("a new key was not claimed")
	}
	expectSame(t, "the claim", kept, r)
	again := r
	again.Holder = "b"
	kept, claimed = claim(t, store, again, storeEpoch.Add(time.Second))
	if claimed || kept.Holder != "a" || kept.Status != 0 {
		t.Errorf("a repeat while it runs: claimed %v, %+v", claimed, kept)
	}
	if err := store.RenewRequest(t.Context(), r.RequestKey, "a", storeEpoch.Add(time.Hour)); err != nil {
		t.Error(err)
	}
	expectCode(t, "a renewal by another", store.RenewRequest(t.Context(), r.RequestKey, "b", storeEpoch), nacre.CodeConflict)
	r.Status, r.ContentType, r.Answer = 201, "application/json", []byte("{\"token\":\"secret\x00\"}")
	if err := store.AnswerRequest(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	kept, claimed = claim(t, store, again, storeEpoch.Add(2*time.Hour))
	if claimed || kept.Holder != "" || kept.Status != 201 || kept.ContentType != r.ContentType || !bytes.Equal(kept.Answer, r.Answer) {
		t.Errorf("the replay: claimed %v, %+v", claimed, kept)
	}
	expectCode(t, "a second answer", store.AnswerRequest(t.Context(), r), nacre.CodeConflict)
	if err := store.ForgetRequest(t.Context(), r.RequestKey, "a"); err != nil {
		t.Error(err)
	}
	if kept, claimed := claim(t, store, again, storeEpoch.Add(2*time.Hour)); claimed || kept.Status != 201 {
		t.Error("an answered request was forgotten")
	}
}

func requestOtherBody(t *testing.T, store nacre.RequestStore) {
	r := sampleRequest("a")
	claim(t, store, r, storeEpoch)
	r.Body = [32]byte{2}
	for range 2 {
		_, _, err := store.ClaimRequest(t.Context(), r, storeEpoch, storeEpoch.Add(-time.Hour))
		expectCode(t, "another body", err, nacre.CodeConflict)
		r.Body, r.Status = [32]byte{1}, 200
		if err := store.AnswerRequest(t.Context(), r); err != nil && !nacre.IsCode(err, nacre.CodeConflict) {
			t.Fatal(err)
		}
		r.Body = [32]byte{2}
	}
}

func requestTakenOver(t *testing.T, store nacre.RequestStore) {
	r := sampleRequest("a")
	claim(t, store, r, storeEpoch)
	next := r
	next.Holder, next.Lease = "b", storeEpoch.Add(2*time.Minute)
	kept, claimed := claim(t, store, next, r.Lease)
	if !claimed || kept.Taken != 1 || kept.Holder != "b" {
		t.Errorf("after the lease: claimed %v, %+v", claimed, kept)
	}
	r.Status = 200
	expectCode(t, "the answer of who lost it", store.AnswerRequest(t.Context(), r), nacre.CodeConflict)
	expectCode(t, "the renewal of who lost it", store.RenewRequest(t.Context(), r.RequestKey, "a", storeEpoch), nacre.CodeConflict)
	if err := store.ForgetRequest(t.Context(), r.RequestKey, "a"); err != nil {
		t.Error(err)
	}
	if kept, claimed := claim(t, store, next, r.Lease); claimed || kept.Holder != "b" {
		t.Errorf("who lost it could give it up: %v %+v", claimed, kept)
	}
}

func requestAtOnce(t *testing.T, store nacre.RequestStore) {
	base := sampleRequest("")
	var wg sync.WaitGroup
	var won atomic.Int32
	for i := range 24 {
		wg.Go(func() {
			r := base
			r.Holder = fmt.Sprint("holder ", i)
			_, claimed, err := store.ClaimRequest(t.Context(), r, storeEpoch, storeEpoch.Add(-time.Hour))
			if err != nil {
				t.Error(err)
			}
			if claimed {
				won.Add(1)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 24 at once may run the request", won.Load())
	}
}

func requestTwoTeams(t *testing.T, store nacre.RequestStore) {
	r := sampleRequest("a")
	claim(t, store, r, storeEpoch)
	other := r
	other.TeamID, other.Body = nacre.NewTeamID(), [32]byte{9}
	if _, claimed := claim(t, store, other, storeEpoch); !claimed {
		t.Error("another team's key is in the way")
	}
	other = r
	other.Route = "POST /sandboxes/x/fork"
	if _, claimed := claim(t, store, other, storeEpoch); !claimed {
		t.Error("the same key on another route is in the way")
	}
}

func requestForgotten(t *testing.T, store nacre.RequestStore) {
	r := sampleRequest("a")
	claim(t, store, r, storeEpoch)
	if err := store.ForgetRequest(t.Context(), r.RequestKey, "a"); err != nil {
		t.Fatal(err)
	}
	r.Body = [32]byte{7}
	if kept, claimed := claim(t, store, r, storeEpoch); !claimed || kept.Taken != 0 {
		t.Errorf("after it was given up: %v %+v", claimed, kept)
	}
}

func requestAge(t *testing.T, store nacre.RequestStore) {
	r := sampleRequest("a")
	claim(t, store, r, storeEpoch)
	r.Status = 200
	if err := store.AnswerRequest(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	next := r
	next.Holder, next.Body, next.CreatedAt = "b", [32]byte{3}, storeEpoch.Add(25*time.Hour)
	kept, claimed, err := store.ClaimRequest(t.Context(), next, next.CreatedAt, storeEpoch.Add(time.Hour))
	if err != nil || !claimed || kept.Status != 0 {
		t.Errorf("a day later: %v %+v %v", claimed, kept, err)
	}
	old := sampleRequest("a")
	old.CreatedAt = storeEpoch.Add(-100 * time.Hour)
	if _, _, err := store.ClaimRequest(t.Context(), old, storeEpoch, storeEpoch.Add(-200*time.Hour)); err != nil {
		t.Fatal(err)
	}
	n, err := store.PurgeRequests(t.Context(), storeEpoch.Add(-50*time.Hour), 10)
	if err != nil || n != 1 {
		t.Errorf("purged %d, %v", n, err)
	}
}

func requestBad(t *testing.T, store nacre.RequestStore) {
	for what, spoil := range map[string]func(*nacre.KeptRequest){
		"no key":     func(r *nacre.KeptRequest) { r.Key = "" },
		"a long key": func(r *nacre.KeptRequest) { r.Key = string(make([]byte, 256)) },
		"NUL":        func(r *nacre.KeptRequest) { r.Key = "a\x00" },
		"not UTF-8":  func(r *nacre.KeptRequest) { r.Key = "\xff" },
		"no team":    func(r *nacre.KeptRequest) { r.TeamID = "" },
		"no holder":  func(r *nacre.KeptRequest) { r.Holder = "" },
	} {
		r := sampleRequest("a")
		spoil(&r)
		_, _, err := store.ClaimRequest(t.Context(), r, storeEpoch, storeEpoch.Add(-time.Hour))
		expectCode(t, what, err, nacre.CodeInvalid)
	}
}
