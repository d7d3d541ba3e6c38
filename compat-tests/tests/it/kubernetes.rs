//! Runs the Go tests of `kubernetes/`: Kubernetes' own types and kustomize's own library on the manifests of `deploy/k8s`.

use std::process::Command;

use starling_compat_tests::tools;

#[test]
fn kubernetes_takes_the_manifests() {
    if tools::toolchain("go", "version", "no manifest is looked at").is_none() {
        return;
    }
    let mut go = Command::new("go");
    go.args(["test", "-count=1", "-timeout=150s", "./..."])
        .current_dir(tools::package_dir().join("kubernetes"));
    let output = go.output().expect("go can be started");
    let (text, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{errors}");
}
