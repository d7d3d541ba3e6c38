package apiserver

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"
	"k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/retry"
)

// tests are what a namespace of its own is enough for.
var tests = []struct {
	name string
	test func(*testing.T, *stack, dynamic.ResourceInterface)
}{
	{"one-object", oneObject},
	{"patches", patches},
	{"finalizers", finalizers},
	{"collections", collections},
	{"conflicts", conflicts},
	{"lists", lists},
	{"pages", pages},
	{"watches", watches},
	{"selections", selections},
	{"bookmarks", bookmarks},
	{"initial-events", initialEvents},
	{"stored", stored},
	{"compaction", compaction},
	{"restart", restarted},
}

func TestKubernetes(t *testing.T) {
	for _, cached := range []bool{true, false} {
		t.Run(fmt.Sprintf("cached=%t", cached), func(t *testing.T) {
			s := start(t, cached)
			birds := s.define(t, "birds", "Bird")
			t.Run("definitions", func(t *testing.T) { definitions(t, s) })
			for _, one := range tests {
				t.Run(one.name, func(t *testing.T) { one.test(t, s, birds.Namespace(one.name)) })
			}
		})
	}
}

// Objects go with the definition of their kind, and do not come back with it.
func definitions(t *testing.T, s *stack) {
	ctx := limited(t)
	all := s.definitions.ApiextensionsV1().CustomResourceDefinitions()
	for range 2 {
		nests := s.define(t, "nests", "Nest").Namespace("definitions")
		if found := shown(list(t, nests, metav1.ListOptions{})); found != "" {
			t.Fatalf("there are nests in a new kind: %s", found)
		}
		nest := bird("in-a-tree", 1)
		nest.SetKind("Nest")
		if _, err := nests.Create(ctx, nest, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := all.Delete(ctx, "nests."+group, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the definition is gone", func() bool {
			_, err := all.Get(ctx, "nests."+group, metav1.GetOptions{})
			return errors.IsNotFound(err)
		})
	}
}

func oneObject(t *testing.T, _ *stack, birds dynamic.ResourceInterface) {
	ctx := limited(t)
	first := create(t, birds, "a", 1)
	if _, err := birds.Create(ctx, bird("a", 2), metav1.CreateOptions{}); !errors.IsAlreadyExists(err) {
		t.Fatalf("created twice: %v", err)
	}
	second := set(t, birds, first, 2)
	if second.GetGeneration() != 2 || second.GetUID() != first.GetUID() {
		t.Fatalf("an update makes %v of %v", second, first)
	}
	if revision(t, second.GetResourceVersion()) <= revision(t, first.GetResourceVersion()) {
		t.Fatalf("%s after %s", second.GetResourceVersion(), first.GetResourceVersion())
	}
	if _, err := birds.Update(ctx, first, metav1.UpdateOptions{}); !errors.IsConflict(err) {
		t.Fatalf("an update of what was there before: %v", err)
	}
	same := set(t, birds, second, 2)
	if same.GetResourceVersion() != second.GetResourceVersion() {
		t.Fatal("an update that changes nothing is written")
	}
	status := second.DeepCopy()
	status.Object["status"] = map[string]any{"flies": true}
	status, err := birds.UpdateStatus(ctx, status, metav1.UpdateOptions{})
	if err != nil || status.GetGeneration() != 2 {
		t.Fatalf("%v: %v", status, err)
	}
	found, err := birds.Get(ctx, "a", metav1.GetOptions{})
	if err != nil || found.GetResourceVersion() != status.GetResourceVersion() {
		t.Fatalf("%v is read: %v", found, err)
	}
	other := types.UID("another")
	wrong := metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &other}}
	if err := birds.Delete(ctx, "a", wrong); !errors.IsConflict(err) {
		t.Fatalf("another object is deleted: %v", err)
	}
	remove(t, birds, "a")
	if _, err := birds.Get(ctx, "a", metav1.GetOptions{}); !errors.IsNotFound(err) {
		t.Fatalf("deleted, and there: %v", err)
	}
	if err := birds.Delete(ctx, "a", metav1.DeleteOptions{}); !errors.IsNotFound(err) {
		t.Fatalf("deleted twice: %v", err)
	}
}

func patches(t *testing.T, _ *stack, birds dynamic.ResourceInterface) {
	ctx := limited(t)
	create(t, birds, "a", 1)
	merged, err := birds.Patch(ctx, "a", types.MergePatchType, []byte(`{"spec":{"color":"red"}}`), metav1.PatchOptions{})
	if err != nil || count(merged) != 1 {
		t.Fatalf("%v: %v", merged, err)
	}
	patch := func(test string) error {
		patch := `[{"op":"test","path":"/spec/color","value":"` + test + `"},{"op":"replace","path":"/spec/count","value":5}]`
		_, err := birds.Patch(ctx, "a", types.JSONPatchType, []byte(patch), metav1.PatchOptions{})
		return err
	}
	if err := patch("blue"); !errors.IsInvalid(err) {
		t.Fatalf("a patch whose test fails: %v", err)
	}
	if err := patch("red"); err != nil {
		t.Fatal(err)
	}
	apply := func(manager, color string, force bool) error {
		config := bird("b", 1)
		config.Object["spec"] = map[string]any{"color": color}
		_, err := birds.Apply(ctx, "b", config, metav1.ApplyOptions{FieldManager: manager, Force: force})
		return err
	}
	if err := apply("one", "red", false); err != nil {
		t.Fatal(err)
	}
	if err := apply("other", "blue", false); !errors.IsConflict(err) {
		t.Fatalf("a field of another manager is taken: %v", err)
	}
	if err := apply("other", "blue", true); err != nil {
		t.Fatal(err)
	}
	if found := shown(list(t, birds, metav1.ListOptions{})); found != "a=5 b=0" {
		t.Fatal(found)
	}
}

func finalizers(t *testing.T, _ *stack, birds dynamic.ResourceInterface) {
	ctx := limited(t)
	guarded := bird("a", 1)
	guarded.SetFinalizers([]string{group + "/guard"})
	guarded, err := birds.Create(ctx, guarded, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	watcher := watching(t, birds, metav1.ListOptions{ResourceVersion: guarded.GetResourceVersion()})
	remove(t, birds, "a")
	marked, err := birds.Get(ctx, "a", metav1.GetOptions{})
	if err != nil || marked.GetDeletionTimestamp() == nil {
		t.Fatalf("%v: %v", marked, err)
	}
	expect(t, watcher, "MODIFIED a=1")
	marked.SetFinalizers(nil)
	if _, err := birds.Update(ctx, marked, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	expect(t, watcher, "DELETED a=1")
}

func collections(t *testing.T, _ *stack, birds dynamic.ResourceInterface) {
	for number := range int64(7) {
		create(t, birds, fmt.Sprint("bird-", number), number)
	}
	odd := metav1.ListOptions{LabelSelector: "parity=odd"}
	if err := birds.DeleteCollection(limited(t), metav1.DeleteOptions{}, odd); err != nil {
		t.Fatal(err)
	}
	if found := shown(list(t, birds, metav1.ListOptions{})); found != "bird-0=0 bird-2=2 bird-4=4 bird-6=6" {
		t.Fatal(found)
	}
	if err := birds.DeleteCollection(limited(t), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	if found := shown(list(t, birds, metav1.ListOptions{})); found != "" {
		t.Fatal(found)
	}
}

// Of many that change an object at the same time, none is lost.
func conflicts(t *testing.T, _ *stack, birds dynamic.ResourceInterface) {
	const writers, rounds = 6, 5
	create(t, birds, "a", 0)
	ctx := limited(t)
	increment := func() error {
		found, err := birds.Get(ctx, "a", metav1.GetOptions{})
		if err != nil {
			return err
		}
		changed := bird("a", count(found)+1)
		changed.SetResourceVersion(found.GetResourceVersion())
		_, err = birds.Update(ctx, changed, metav1.UpdateOptions{})
		return err
	}
	patience := retry.DefaultRetry
	patience.Steps = 100
	var group sync.WaitGroup
	for range writers {
		group.Go(func() {
			for range rounds {
				if err := retry.RetryOnConflict(patience, increment); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	if found := shown(list(t, birds, metav1.ListOptions{})); found != fmt.Sprint("a=", writers*rounds) {
		t.Fatal(found)
	}
}

func lists(t *testing.T, s *stack, birds dynamic.ResourceInterface) {
	first := create(t, birds, "a", 1)
	create(t, birds, "b", 2)
	last := set(t, birds, first, 3)
	at := func(version string, match metav1.ResourceVersionMatch) metav1.ListOptions {
		return metav1.ListOptions{ResourceVersion: version, ResourceVersionMatch: match}
	}
	for _, one := range []struct {
		options  metav1.ListOptions
		expected string
	}{
		{metav1.ListOptions{}, "a=3 b=2"},
		{at(last.GetResourceVersion(), metav1.ResourceVersionMatchNotOlderThan), "a=3 b=2"},
		{at(first.GetResourceVersion(), metav1.ResourceVersionMatchExact), "a=1"},
		{metav1.ListOptions{LabelSelector: "parity=even"}, "b=2"},
		{metav1.ListOptions{FieldSelector: "metadata.name=a"}, "a=3"},
	} {
		if found := shown(list(t, birds, one.options)); found != one.expected {
			t.Fatalf("%+v lists %s", one.options, found)
		}
	}
	// What was written before is in a list that names no version, wherever that comes from.
	for number := range int64(50) {
		last = set(t, birds, last, number)
		all := list(t, birds, metav1.ListOptions{})
		if found := shown(all); found != fmt.Sprintf("a=%d b=2", number) {
			t.Fatalf("%s, %d was written", found, number)
		}
		if revision(t, all.GetResourceVersion()) < revision(t, last.GetResourceVersion()) {
			t.Fatalf("a list of %s after a write of %s", all.GetResourceVersion(), last.GetResourceVersion())
		}
	}
	if s.cached {
		// The cache asks the storage how far it is, and does not fetch everything again.
		const consistent = `consistent_read_total{fallback="false",group="starling.test",resource="birds",success="true"}`
		metrics, err := s.definitions.Discovery().RESTClient().Get().AbsPath("/metrics").DoRaw(limited(t))
		if err != nil || !strings.Contains(string(metrics), consistent) {
			t.Fatalf("no list came from the cache: %v", err)
		}
	}
}

// All pages are of the time of the first one.
func pages(t *testing.T, _ *stack, birds dynamic.ResourceInterface) {
	const size, all = 7, 25
	var expected []string
	for number := range int64(all) {
		create(t, birds, fmt.Sprintf("bird-%02d", number), number)
		expected = append(expected, fmt.Sprintf("bird-%02d=%d", number, number))
	}
	var found []string
	options := metav1.ListOptions{Limit: size}
	version := ""
	for {
		page := list(t, birds, options)
		found = append(found, shown(page))
		if version == "" {
			version = page.GetResourceVersion()
			create(t, birds, "bird-10-and-a-half", 10)
			remove(t, birds, "bird-20")
		}
		if page.GetResourceVersion() != version {
			t.Fatalf("a page of %s after one of %s", page.GetResourceVersion(), version)
		}
		remaining := page.GetRemainingItemCount()
		if options.Continue = page.GetContinue(); options.Continue == "" {
			break
		}
		if left := int64(all - size*len(found)); remaining == nil || *remaining != left {
			t.Fatalf("%v are said to remain of %d", remaining, left)
		}
	}
	if found := strings.Join(found, " "); found != strings.Join(expected, " ") {
		t.Fatal(found)
	}
}

func watches(t *testing.T, _ *stack, birds dynamic.ResourceInterface) {
	first := create(t, birds, "a", 1)
	second := set(t, birds, first, 2)
	create(t, birds, "b", 1)
	remove(t, birds, "a")
	// From the middle of what has been, on to what comes.
	watcher := watching(t, birds, metav1.ListOptions{ResourceVersion: first.GetResourceVersion()})
	last := expect(t, watcher, "MODIFIED a=2", "ADDED b=1", "DELETED a=2")
	create(t, birds, "a", 3)
	expect(t, watcher, "ADDED a=3")
	later := watching(t, birds, metav1.ListOptions{ResourceVersion: last})
	expect(t, later, "ADDED a=3")
	if revision(t, last) <= revision(t, second.GetResourceVersion()) {
		t.Fatalf("deleted at %s", last)
	}
}

// What enters and leaves a selection is added and deleted for those who watch it; deleted as they knew it, so this
// needs the pairs before a change.
func selections(t *testing.T, _ *stack, birds dynamic.ResourceInterface) {
	object := create(t, birds, "a", 1)
	create(t, birds, "b", 2)
	odd := metav1.ListOptions{LabelSelector: "parity=odd", ResourceVersion: object.GetResourceVersion()}
	watcher := watching(t, birds, odd)
	for number := int64(2); number <= 5; number++ {
		object = set(t, birds, object, number)
	}
	object = set(t, birds, object, 7)
	remove(t, birds, "a")
	expect(t, watcher, "DELETED a=1", "ADDED a=3", "DELETED a=3", "ADDED a=5", "MODIFIED a=7", "DELETED a=7")
}

// Bookmarks tell how far a watch is that sees nothing.
func bookmarks(t *testing.T, s *stack, birds dynamic.ResourceInterface) {
	if !s.cached {
		t.Skip("bookmarks are the cache's")
	}
	from := list(t, birds, metav1.ListOptions{}).GetResourceVersion()
	timeout := int64(10)
	options := metav1.ListOptions{ResourceVersion: from, AllowWatchBookmarks: true, TimeoutSeconds: &timeout}
	watcher := watching(t, birds, options)
	elsewhere := s.dynamic.Resource(birdsResource).Namespace("elsewhere")
	other := create(t, elsewhere, "a", 1)
	for {
		kind, object := next(t, watcher)
		if kind != watch.Bookmark {
			t.Fatalf("%s %v", kind, object)
		}
		if revision(t, object.GetResourceVersion()) >= revision(t, other.GetResourceVersion()) {
			return
		}
	}
}

// A watch can begin with all that there is, and a bookmark behind it.
func initialEvents(t *testing.T, _ *stack, birds dynamic.ResourceInterface) {
	create(t, birds, "a", 1)
	last := create(t, birds, "b", 2)
	send := true
	watcher := watching(t, birds, metav1.ListOptions{
		SendInitialEvents:    &send,
		AllowWatchBookmarks:  true,
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
	})
	expect(t, watcher, "ADDED a=1", "ADDED b=2")
	kind, object := next(t, watcher)
	if kind != watch.Bookmark || object.GetAnnotations()[metav1.InitialEventsAnnotationKey] != "true" {
		t.Fatalf("%s %v", kind, object)
	}
	if revision(t, object.GetResourceVersion()) < revision(t, last.GetResourceVersion()) {
		t.Fatalf("all there is at %s, without %s", object.GetResourceVersion(), last.GetResourceVersion())
	}
	create(t, birds, "c", 3)
	expect(t, watcher, "ADDED c=3")
}

// The version of an object is the revision of its key.
func stored(t *testing.T, s *stack, birds dynamic.ResourceInterface) {
	object := set(t, birds, create(t, birds, "a", 1), 2)
	key := strings.Join([]string{s.prefix, group, "birds", "stored", "a"}, "/")
	found, err := s.etcd.Get(limited(t), key)
	if err != nil || len(found.Kvs) != 1 {
		t.Fatalf("%v: %v", found, err)
	}
	pair := found.Kvs[0]
	if pair.ModRevision != revision(t, object.GetResourceVersion()) || pair.Version != 2 {
		t.Fatalf("%v is stored as %v", object, pair)
	}
	var value map[string]any
	if err := json.Unmarshal(pair.Value, &value); err != nil || value["kind"] != "Bird" {
		t.Fatalf("%s: %v", pair.Value, err)
	}
}

// What the storage has compacted is gone for those who want to go on from there, and they are told so.
func compaction(t *testing.T, s *stack, birds dynamic.ResourceInterface) {
	if s.cached {
		t.Skip("the cache has its own history")
	}
	ctx := limited(t)
	first := create(t, birds, "a", 1)
	create(t, birds, "b", 2)
	page := list(t, birds, metav1.ListOptions{Limit: 1})
	last := create(t, birds, "c", 3)
	if _, err := s.etcd.Compact(ctx, revision(t, last.GetResourceVersion()), clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	_, err := birds.List(ctx, metav1.ListOptions{Limit: 1, Continue: page.GetContinue()})
	if !errors.IsResourceExpired(err) {
		t.Fatalf("a page goes on: %v", err)
	}
	exact := metav1.ListOptions{
		ResourceVersion: first.GetResourceVersion(), ResourceVersionMatch: metav1.ResourceVersionMatchExact,
	}
	if _, err := birds.List(ctx, exact); !errors.IsResourceExpired(err) {
		t.Fatalf("a list of what is gone: %v", err)
	}
	watcher, err := birds.Watch(ctx, metav1.ListOptions{ResourceVersion: first.GetResourceVersion()})
	if err == nil {
		defer watcher.Stop()
		event := <-watcher.ResultChan()
		err = errors.FromObject(event.Object)
	}
	if !errors.IsResourceExpired(err) && !errors.IsGone(err) {
		t.Fatalf("a watch of what is gone: %v", err)
	}
	if found := shown(list(t, birds, metav1.ListOptions{})); found != "a=1 b=2 c=3" {
		t.Fatal(found)
	}
}

// The storage is killed and comes back: nothing is lost, seen twice or out of order.
func restarted(t *testing.T, s *stack, birds dynamic.ResourceInterface) {
	ctx := limited(t)
	factory := dynamicinformer.NewFilteredDynamicSharedInformerFactory(s.dynamic, 0, "restart", nil)
	informer := factory.ForResource(birdsResource).Informer()
	var lock sync.Mutex
	var seen []string
	note := func(kind string) func(any) {
		return func(object any) {
			lock.Lock()
			defer lock.Unlock()
			seen = append(seen, kind+" "+object.(*unstructured.Unstructured).GetName())
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: note("+"), DeleteFunc: note("-")}
	if _, err := informer.AddEventHandler(handler); err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	factory.Start(running.Done())
	factory.WaitForCacheSync(running.Done())
	before := create(t, birds, "before", 1)
	watcher := watching(t, birds, metav1.ListOptions{ResourceVersion: before.GetResourceVersion()})
	create(t, birds, "soon", 2)

	restart(t)

	eventually(t, "a write after the restart", func() bool {
		_, err := birds.Create(ctx, bird("after", 3), metav1.CreateOptions{})
		// The first attempt may be done and not answered.
		return err == nil || errors.IsAlreadyExists(err)
	})
	remove(t, birds, "before")
	if found := shown(list(t, birds, metav1.ListOptions{})); found != "after=3 soon=2" {
		t.Fatal(found)
	}
	eventually(t, "the informer knows", func() bool {
		lock.Lock()
		defer lock.Unlock()
		return strings.Join(seen, ", ") == "+ before, + soon, + after, - before"
	})
	// Without a cache a watch ends with the connection that it came by, and its owner goes on from where it was.
	at := before.GetResourceVersion()
	for _, event := range []string{"ADDED soon=2", "ADDED after=3", "DELETED before=1"} {
		if !s.cached {
			watcher = watching(t, birds, metav1.ListOptions{ResourceVersion: at})
		}
		at = expect(t, watcher, event)
	}
}
