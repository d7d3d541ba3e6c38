// Kubernetes' own types and kustomize's own library on the manifests of deploy/k8s, without a cluster.
package kubernetes

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const manifests = "../../deploy/k8s"

// What a directory comes to.
type built struct {
	sets        []appsv1.StatefulSet
	deployments []appsv1.Deployment
	services    []corev1.Service
	budgets     []policyv1.PodDisruptionBudget
}

// Builds a directory as `kubectl apply -k` does, and decodes everything: a field that Kubernetes does not know, or of
// another type, fails.
func build(t *testing.T, directory string) built {
	t.Helper()
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), filepath.Join(manifests, directory))
	if err != nil {
		t.Fatal(err)
	}
	var all built
	for _, resource := range resources.Resources() {
		text, err := resource.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		decode := func(object any) {
			if err := yaml.UnmarshalStrict(text, object); err != nil {
				t.Fatalf("%s: %v", resource.CurId(), err)
			}
		}
		switch kind := resource.GetApiVersion() + " " + resource.GetKind(); kind {
		case "v1 Namespace":
			decode(&corev1.Namespace{})
		case "v1 Service":
			var service corev1.Service
			decode(&service)
			all.services = append(all.services, service)
		case "apps/v1 StatefulSet":
			var set appsv1.StatefulSet
			decode(&set)
			all.sets = append(all.sets, set)
		case "apps/v1 Deployment":
			var deployment appsv1.Deployment
			decode(&deployment)
			all.deployments = append(all.deployments, deployment)
		case "policy/v1 PodDisruptionBudget":
			var budget policyv1.PodDisruptionBudget
			decode(&budget)
			all.budgets = append(all.budgets, budget)
		default:
			t.Fatalf("%s is not looked at", kind)
		}
	}
	return all
}

func selects(t *testing.T, selector *metav1.LabelSelector, of map[string]string) bool {
	t.Helper()
	parsed, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		t.Fatal(err)
	}
	return !parsed.Empty() && parsed.Matches(labels.Set(of))
}

// What all kinds of pods have to be.
func checkPod(t *testing.T, all built, selector *metav1.LabelSelector, template corev1.PodTemplateSpec) {
	t.Helper()
	if !selects(t, selector, template.Labels) {
		t.Error("the pods are not selected")
	}
	for _, budget := range all.budgets {
		if !selects(t, budget.Spec.Selector, template.Labels) {
			t.Errorf("the budget %s is not theirs", budget.Name)
		}
	}
	if len(all.budgets) != 1 {
		t.Error("there is not one budget")
	}
	container := template.Spec.Containers[0]
	ports := map[string]bool{}
	for _, port := range container.Ports {
		ports[port.Name] = true
	}
	for _, service := range all.services {
		if !labels.SelectorFromSet(service.Spec.Selector).Matches(labels.Set(template.Labels)) || len(service.Spec.Selector) == 0 {
			t.Errorf("the service %s selects no pod", service.Name)
		}
	}
	for name, probe := range map[string]*corev1.Probe{"liveness": container.LivenessProbe, "readiness": container.ReadinessProbe} {
		if probe == nil || probe.HTTPGet == nil || !ports[probe.HTTPGet.Port.StrVal] {
			t.Errorf("the %s probe asks no port of the container", name)
		}
	}
	security := template.Spec.SecurityContext
	if security == nil || security.RunAsNonRoot == nil || !*security.RunAsNonRoot {
		t.Error("the pods may run as root")
	}
	if template.Annotations["prometheus.io/scrape"] != "true" || template.Annotations["prometheus.io/port"] == "" {
		t.Error("Prometheus is not told of the pods")
	}
	variables := map[string]bool{}
	for _, variable := range container.Env {
		variables[variable.Name] = true
	}
	for _, argument := range container.Args {
		for _, part := range strings.Split(argument, "$(")[1:] {
			if name, _, _ := strings.Cut(part, ")"); !variables[name] {
				t.Errorf("%s: there is no %s", argument, name)
			}
		}
	}
}

func headless(services []corev1.Service, name string) bool {
	for _, service := range services {
		if service.Name == name {
			return service.Spec.ClusterIP == corev1.ClusterIPNone && service.Spec.PublishNotReadyAddresses
		}
	}
	return false
}

func TestStatefulSet(t *testing.T) {
	for _, directory := range []string{"statefulset", "tls"} {
		t.Run(directory, func(t *testing.T) {
			all := build(t, directory)
			set := all.sets[0]
			checkPod(t, all, set.Spec.Selector, set.Spec.Template)
			if !headless(all.services, set.Spec.ServiceName) {
				t.Errorf("%s is no headless service of unready members", set.Spec.ServiceName)
			}
			claims := set.Spec.VolumeClaimTemplates
			mounts := set.Spec.Template.Spec.Containers[0].VolumeMounts
			if len(claims) != 1 || mounts[0].Name != claims[0].Name && mounts[len(mounts)-1].Name != claims[0].Name {
				t.Error("the data has no volume of its own")
			}
		})
	}
}

func TestSidecar(t *testing.T) {
	all := build(t, "sidecar")
	deployment := all.deployments[0]
	checkPod(t, all, deployment.Spec.Selector, deployment.Spec.Template)
	container := deployment.Spec.Template.Spec.Containers[0]
	if stop := container.Lifecycle.PreStop.Exec.Command; strings.Join(stop, " ") != "/usr/local/bin/starling shell leave" {
		t.Errorf("before the end it does %v", stop)
	}
	if !headless(all.services, "starling-gossip") {
		t.Error("members do not find each other")
	}
	if !strings.Contains(strings.Join(container.Args, " "), "--volatile") {
		t.Error("it wants a disk")
	}
}

func TestTLSSecretsAreMounted(t *testing.T) {
	spec := build(t, "tls").sets[0].Spec.Template.Spec
	secrets := map[string]string{}
	for _, volume := range spec.Volumes {
		if volume.Secret != nil {
			secrets[volume.Name] = volume.Secret.SecretName
		}
	}
	if secrets["client-tls"] == "" || secrets["peer-tls"] == "" {
		t.Errorf("the secrets are %v", secrets)
	}
	mounted := map[string]string{}
	for _, mount := range spec.Containers[0].VolumeMounts {
		mounted[mount.Name] = mount.MountPath
	}
	for _, argument := range spec.Containers[0].Args {
		if _, path, found := strings.Cut(argument, "=/tls/"); found {
			directory := "/tls/" + strings.Split(path, "/")[0]
			if mounted["client-tls"] != directory && mounted["peer-tls"] != directory {
				t.Errorf("%s: nothing is mounted there", argument)
			}
		}
	}
}

// Everything that is there is built by one of the directories.
func TestNothingIsLeftOut(t *testing.T) {
	entries, err := os.ReadDir(manifests)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		switch entry.Name() {
		case "statefulset", "sidecar", "tls":
		default:
			t.Errorf("%s is not looked at", entry.Name())
		}
	}
}
