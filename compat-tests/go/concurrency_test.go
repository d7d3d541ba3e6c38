package compat

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	recipe "go.etcd.io/etcd/client/v3/experimental/recipes"
)

func session(t *testing.T, client *clientv3.Client) *concurrency.Session {
	t.Helper()
	return must[*concurrency.Session](t)(concurrency.NewSession(client, concurrency.WithTTL(10)))
}

func TestSessionEnds(t *testing.T) {
	client, ctx := connect(t)
	s := session(t, client)
	put(t, ctx, client, "session", "1", clientv3.WithLease(s.Lease()))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	<-s.Done()
	equal(t, "key of a closed session", value(t, ctx, client, "session"), "(none)")
}

// Many sessions take turns: no two are inside at once, and nobody starves.
func TestMutexExcludes(t *testing.T) {
	client, ctx := connect(t)
	const workers, rounds = 5, 5
	inside, turns := 0, 0
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			s := session(t, client)
			defer s.Close()
			mutex := concurrency.NewMutex(s, "mutex/turns")
			for range rounds {
				if err := mutex.Lock(ctx); err != nil {
					t.Error(err)
					return
				}
				inside++
				if inside != 1 {
					t.Errorf("%d are inside", inside)
				}
				turns++
				inside--
				if err := mutex.Unlock(ctx); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	equal(t, "turns", turns, workers*rounds)
}

func TestMutexTryLock(t *testing.T) {
	client, ctx := connect(t)
	first, second := session(t, client), session(t, client)
	defer first.Close()
	defer second.Close()
	holder, other := concurrency.NewMutex(first, "mutex/try"), concurrency.NewMutex(second, "mutex/try")
	if err := holder.TryLock(ctx); err != nil {
		t.Fatal(err)
	}
	if err := other.TryLock(ctx); !errors.Is(err, concurrency.ErrLocked) {
		t.Errorf("got %v, want %v", err, concurrency.ErrLocked)
	}
	owned := must[*clientv3.TxnResponse](t)(client.Txn(ctx).If(holder.IsOwner()).Then(clientv3.OpPut("mutex/owner", "first")).Commit())
	equal(t, "owner", owned.Succeeded, true)
	if err := holder.Unlock(ctx); err != nil {
		t.Fatal(err)
	}
	if err := other.TryLock(ctx); err != nil {
		t.Errorf("after the unlock: %v", err)
	}
}

// A lock is free when the session of its holder ends.
func TestMutexOfALostSession(t *testing.T) {
	client, ctx := connect(t)
	lost := session(t, client)
	if err := concurrency.NewMutex(lost, "mutex/lost").Lock(ctx); err != nil {
		t.Fatal(err)
	}
	waiting := make(chan error)
	next := session(t, client)
	defer next.Close()
	go func() { waiting <- concurrency.NewMutex(next, "mutex/lost").Lock(ctx) }()
	must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, lost.Lease()))
	if err := <-waiting; err != nil {
		t.Error(err)
	}
}

func TestElection(t *testing.T) {
	client, ctx := connect(t)
	first, second := session(t, client), session(t, client)
	defer second.Close()
	one, two := concurrency.NewElection(first, "election"), concurrency.NewElection(second, "election")
	if _, err := one.Leader(ctx); !errors.Is(err, concurrency.ErrElectionNoLeader) {
		t.Errorf("before anyone: %v", err)
	}
	if err := one.Campaign(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	observing, stop := context.WithCancel(ctx)
	defer stop()
	leaders := two.Observe(observing)
	seen := func() string {
		response := <-leaders
		return string(response.Kvs[0].Value)
	}
	equal(t, "the first leader", seen(), "one")
	elected := make(chan error)
	go func() { elected <- two.Campaign(ctx, "two") }()
	if err := one.Proclaim(ctx, "one again"); err != nil {
		t.Fatal(err)
	}
	equal(t, "its new value", seen(), "one again")
	if err := one.Resign(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-elected; err != nil {
		t.Fatal(err)
	}
	equal(t, "the second leader", seen(), "two")
	if err := one.Proclaim(ctx, "late"); !errors.Is(err, concurrency.ErrElectionNotLeader) {
		t.Errorf("a resigned leader: %v", err)
	}
	first.Close()
	leader := must[*clientv3.GetResponse](t)(two.Leader(ctx))
	equal(t, "leader", string(leader.Kvs[0].Value), "two")
}

// Transfers between accounts from several clients keep the sum, at every isolation level that promises it.
func TestSoftwareTransactionalMemory(t *testing.T) {
	const accounts, workers, rounds = 4, 4, 15
	for _, level := range []concurrency.Isolation{concurrency.SerializableSnapshot, concurrency.Serializable} {
		client, ctx := connect(t)
		account := func(number int) string { return fmt.Sprintf("stm/%d/%d", level, number%accounts) }
		for number := range accounts {
			put(t, ctx, client, account(number), "100")
		}
		transfer := func(from, to string) error {
			_, err := concurrency.NewSTM(client, func(stm concurrency.STM) error {
				left, _ := strconv.Atoi(stm.Get(from))
				right, _ := strconv.Atoi(stm.Get(to))
				stm.Put(from, strconv.Itoa(left-1))
				stm.Put(to, strconv.Itoa(right+1))
				return nil
			}, concurrency.WithIsolation(level), concurrency.WithAbortContext(ctx))
			return err
		}
		var group sync.WaitGroup
		for worker := range workers {
			group.Go(func() {
				for round := range rounds {
					if err := transfer(account(worker+round), account(worker+round+1)); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		group.Wait()
		sum := 0
		for number := range accounts {
			left, _ := strconv.Atoi(value(t, ctx, client, account(number)))
			sum += left
		}
		equal(t, fmt.Sprintf("sum at level %d", level), sum, accounts*100)
	}
}

func TestRecipes(t *testing.T) {
	client, ctx := connect(t)
	queue := recipe.NewQueue(client, "recipe/queue")
	for number := range 3 {
		if err := queue.Enqueue(fmt.Sprint(number)); err != nil {
			t.Fatal(err)
		}
	}
	for number := range 3 {
		equal(t, "queue", must[string](t)(queue.Dequeue()), fmt.Sprint(number))
	}
	priority := recipe.NewPriorityQueue(client, "recipe/priority")
	for _, number := range []uint16{3, 1, 2} {
		if err := priority.Enqueue(fmt.Sprint(number), number); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, "first of the priority queue", must[string](t)(priority.Dequeue()), "1")
	barrier := recipe.NewBarrier(client, "recipe/barrier")
	if err := barrier.Hold(); err != nil {
		t.Fatal(err)
	}
	released := make(chan error)
	go func() { released <- barrier.Wait() }()
	if err := barrier.Release(); err != nil {
		t.Fatal(err)
	}
	if err := <-released; err != nil {
		t.Fatal(err)
	}
	s := session(t, client)
	defer s.Close()
	lock := recipe.NewRWMutex(s, "recipe/rw")
	if err := errors.Join(lock.RLock(), lock.RUnlock(), lock.Lock(), lock.Unlock()); err != nil {
		t.Fatal(err)
	}
	equal(t, "nothing is held", value(t, ctx, client, "recipe/barrier"), "(none)")
}
