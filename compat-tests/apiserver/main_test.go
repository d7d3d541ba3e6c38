// Package apiserver tests a running server as the storage of Kubernetes' API machinery.
//
// An apiextensions-apiserver runs inside of the test, keeps all that it has in the server at COMPAT_ENDPOINT, and is
// driven by client-go. The tests assert what controllers rely on, and run on etcd as well as on starling; each runs
// with the watch cache, which answers most of what controllers ask, and without it, where every request reaches the
// storage. A line sent to COMPAT_CONTROL restarts the server.
package apiserver

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	servertesting "k8s.io/apiextensions-apiserver/pkg/cmd/server/testing"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

// deadline is for one test; nothing here takes more than some seconds.
const deadline = 60 * time.Second

const group = "starling.test"

var birdsResource = schema.GroupVersionResource{Group: group, Version: "v1", Resource: "birds"}

// kubeconfig is of an API server that is not there. The options want one, for authentication that is not asked for here.
const kubeconfig = `
apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:1"}}]
contexts: [{name: none, context: {cluster: none}}]
current-context: none
`

// stack is an API server and its clients.
type stack struct {
	prefix      string
	cached      bool
	definitions clientset.Interface
	dynamic     dynamic.Interface
	etcd        *clientv3.Client
}

// start runs an API server until the end of the test, with a prefix of its own in the storage.
func start(t *testing.T, cached bool) *stack {
	t.Helper()
	endpoint := os.Getenv("COMPAT_ENDPOINT")
	if endpoint == "" {
		t.Skip("COMPAT_ENDPOINT is not set")
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := os.WriteFile(file, []byte(kubeconfig), 0o600); err != nil {
		t.Fatal(err)
	}
	prefix := fmt.Sprintf("/registry/cached-%t", cached)
	server := servertesting.StartTestServerOrDie(t, nil, []string{
		"--etcd-servers=http://" + endpoint,
		"--etcd-prefix=" + prefix,
		"--watch-cache=" + strconv.FormatBool(cached),
		"--kubeconfig=" + file,
		"--authentication-kubeconfig=" + file,
		"--authentication-skip-lookup",
		"--authorization-kubeconfig=" + file,
		// They would ask the API server that is not there.
		"--enable-priority-and-fairness=false",
		"--disable-admission-plugins=NamespaceLifecycle,MutatingAdmissionWebhook,ValidatingAdmissionWebhook," +
			"ValidatingAdmissionPolicy,MutatingAdmissionPolicy",
	}, nil)
	t.Cleanup(server.TearDownFn)
	// No request of the tests has to wait for those before it.
	server.ClientConfig.QPS = -1
	etcd, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { etcd.Close() })
	return &stack{
		prefix:      prefix,
		cached:      cached,
		definitions: clientset.NewForConfigOrDie(server.ClientConfig),
		dynamic:     dynamic.NewForConfigOrDie(server.ClientConfig),
		etcd:        etcd,
	}
}

// restart kills the storage, starts it on the same data and waits until it serves.
func restart(t *testing.T) {
	t.Helper()
	control, err := net.Dial("tcp", os.Getenv("COMPAT_CONTROL"))
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if _, err := control.Write([]byte("restart\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(control).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// eventually calls attempt until it answers true.
func eventually(t *testing.T, what string, attempt func() bool) {
	t.Helper()
	for end := time.Now().Add(deadline / 2); !attempt(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// define creates a kind of objects, in namespaces and with a status, and waits until it is served.
func (s *stack) define(t *testing.T, plural, kind string) dynamic.NamespaceableResourceInterface {
	t.Helper()
	ctx := limited(t)
	open := true
	object := func(properties map[string]apiextensions.JSONSchemaProps) apiextensions.JSONSchemaProps {
		return apiextensions.JSONSchemaProps{Type: "object", Properties: properties}
	}
	definition := &apiextensions.CustomResourceDefinition{
		ObjectMeta: metav1.ObjectMeta{Name: plural + "." + group},
		Spec: apiextensions.CustomResourceDefinitionSpec{
			Group: group,
			Scope: apiextensions.NamespaceScoped,
			Names: apiextensions.CustomResourceDefinitionNames{
				Plural: plural, Singular: strings.ToLower(kind), Kind: kind, ListKind: kind + "List",
			},
			Versions: []apiextensions.CustomResourceDefinitionVersion{{
				Name: "v1", Served: true, Storage: true,
				Subresources: &apiextensions.CustomResourceSubresources{
					Status: &apiextensions.CustomResourceSubresourceStatus{},
				},
				Schema: &apiextensions.CustomResourceValidation{OpenAPIV3Schema: &apiextensions.JSONSchemaProps{
					Type: "object",
					Properties: map[string]apiextensions.JSONSchemaProps{
						"spec": object(map[string]apiextensions.JSONSchemaProps{
							"count": {Type: "integer"}, "color": {Type: "string"},
						}),
						"status": {Type: "object", XPreserveUnknownFields: &open},
					},
				}},
			}},
		},
	}
	definitions := s.definitions.ApiextensionsV1().CustomResourceDefinitions()
	if _, err := definitions.Create(ctx, definition, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	resource := s.dynamic.Resource(schema.GroupVersionResource{Group: group, Version: "v1", Resource: plural})
	eventually(t, plural+" are served", func() bool {
		found, err := definitions.Get(ctx, definition.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, condition := range found.Status.Conditions {
			if condition.Type == apiextensions.Established && condition.Status == apiextensions.ConditionTrue {
				_, err := resource.List(ctx, metav1.ListOptions{})
				return err == nil
			}
		}
		return false
	})
	return resource
}

// bird makes an object; one label says whether its count is odd.
func bird(name string, count int64) *unstructured.Unstructured {
	labels := map[string]any{"parity": []any{"even", "odd"}[count%2]}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": group + "/v1",
		"kind":       "Bird",
		"metadata":   map[string]any{"name": name, "labels": labels},
		"spec":       map[string]any{"count": count},
	}}
}

func count(object *unstructured.Unstructured) int64 {
	count, _, _ := unstructured.NestedInt64(object.Object, "spec", "count")
	return count
}

// create stores a new object and returns it as it is stored.
func create(t *testing.T, birds dynamic.ResourceInterface, name string, count int64) *unstructured.Unstructured {
	t.Helper()
	created, err := birds.Create(limited(t), bird(name, count), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return created
}

// set changes the count of an object that is as it was read.
func set(t *testing.T, birds dynamic.ResourceInterface, object *unstructured.Unstructured, count int64) *unstructured.Unstructured {
	t.Helper()
	changed := bird(object.GetName(), count)
	changed.SetResourceVersion(object.GetResourceVersion())
	changed, err := birds.Update(limited(t), changed, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func remove(t *testing.T, birds dynamic.ResourceInterface, name string) {
	t.Helper()
	if err := birds.Delete(limited(t), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, birds dynamic.ResourceInterface, options metav1.ListOptions) *unstructured.UnstructuredList {
	t.Helper()
	list, err := birds.List(limited(t), options)
	if err != nil {
		t.Fatalf("%+v: %v", options, err)
	}
	return list
}

// shown is what a list holds, as "name=count name=count".
func shown(list *unstructured.UnstructuredList) string {
	var items []string
	for _, item := range list.Items {
		items = append(items, fmt.Sprintf("%s=%d", item.GetName(), count(&item)))
	}
	return strings.Join(items, " ")
}

// revision is the number behind a resourceVersion; etcd's revisions are what it is made of.
func revision(t *testing.T, version string) int64 {
	t.Helper()
	number, err := strconv.ParseInt(version, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

func watching(t *testing.T, birds dynamic.ResourceInterface, options metav1.ListOptions) watch.Interface {
	t.Helper()
	watcher, err := birds.Watch(limited(t), options)
	if err != nil {
		t.Fatalf("%+v: %v", options, err)
	}
	t.Cleanup(watcher.Stop)
	return watcher
}

// next waits for one event.
func next(t *testing.T, watcher watch.Interface) (watch.EventType, *unstructured.Unstructured) {
	t.Helper()
	select {
	case event, ok := <-watcher.ResultChan():
		if !ok {
			t.Fatal("the watch has ended")
		}
		object, ok := event.Object.(*unstructured.Unstructured)
		if !ok {
			t.Fatalf("an event with %v", event.Object)
		}
		return event.Type, object
	case <-time.After(deadline / 2):
		t.Fatal("no event came")
	}
	return "", nil
}

// expect waits for events, such as "ADDED name=count", with revisions that grow. It returns the last one's.
func expect(t *testing.T, watcher watch.Interface, expected ...string) string {
	t.Helper()
	last := ""
	for _, event := range expected {
		kind, object := next(t, watcher)
		if found := fmt.Sprintf("%s %s=%d", kind, object.GetName(), count(object)); found != event {
			t.Fatalf("%s came in place of %s", found, event)
		}
		if last != "" && revision(t, object.GetResourceVersion()) <= revision(t, last) {
			t.Fatalf("%s of %s came after %s", event, object.GetResourceVersion(), last)
		}
		last = object.GetResourceVersion()
	}
	return last
}
