//! The examples in `deploy/` are well formed and name flags, variables and layers that exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{CommandFactory, Parser};
use oubliette::request::args::Cli;
use serde_json::Value;

use crate::need;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

fn manifests() -> Vec<(String, Value)> {
    let mut paths: Vec<PathBuf> = ["", "kubernetes"]
        .into_iter()
        .flat_map(|folder| fs::read_dir(deploy(folder)).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let value = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.file_name().unwrap().to_string_lossy().into_owned(), value)
        })
        .collect()
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn words(value: &Value, key: &str) -> Vec<String> {
    items(value, key).map(|word| word.as_str().expect("a word").to_owned()).collect()
}

/// The pod, and for a Knative service what stands for it.
fn pod(manifest: &Value) -> &Value {
    &manifest["spec"]["template"]["spec"]
}

fn containers(manifest: &Value) -> Vec<&Value> {
    let pod = pod(manifest);
    items(pod, "initContainers").chain(items(pod, "containers")).collect()
}

/// Every command line of ours, also one inside `sh -c`.
fn command_lines(container: &Value) -> Vec<Vec<String>> {
    let whole = [words(container, "command"), words(container, "args")].concat();
    let probe = words(&container["startupProbe"]["exec"], "command");
    [whole, probe]
        .into_iter()
        .map(|line| match &line[..] {
            [shell, flag, script] if shell == "sh" && flag == "-c" => {
                script.split("||").next().unwrap().split_whitespace().map(str::to_owned).collect()
            }
            _ => line,
        })
        .filter(|line: &Vec<String>| line.first().is_some_and(|name| name == "oubliette"))
        .collect()
}

fn variables() -> BTreeSet<String> {
    let command = Cli::command();
    let mut known: BTreeSet<String> = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned()))
        .collect();
    // Adds to the flag instead of standing for it.
    known.insert("OUBLIETTE_REQUIRE".into());
    known
}

#[test]
fn manifests_are_of_their_kinds() {
    let manifests = manifests();
    let kinds: Vec<(&str, &str, &str)> = manifests
        .iter()
        .map(|(name, manifest)| {
            (&name[..], manifest["apiVersion"].as_str().unwrap(), manifest["kind"].as_str().unwrap())
        })
        .collect();
    assert_eq!(
        kinds,
        [
            ("cloud-run.yaml", "serving.knative.dev/v1", "Service"),
            ("deployment-gvisor.yaml", "apps/v1", "Deployment"),
            ("deployment.yaml", "apps/v1", "Deployment"),
            ("job-gvisor.yaml", "batch/v1", "Job"),
            ("job.yaml", "batch/v1", "Job"),
        ]
    );
    for (name, manifest) in &manifests {
        assert!(manifest["metadata"]["name"].is_string(), "{name}");
        assert!(!containers(manifest).is_empty(), "{name}");
        let gvisor = name.contains("gvisor");
        assert_eq!(pod(manifest)["runtimeClassName"].as_str(), gvisor.then_some("gvisor"), "{name}");
        let volumes: BTreeSet<&str> =
            items(pod(manifest), "volumes").map(|volume| volume["name"].as_str().unwrap()).collect();
        for container in containers(manifest) {
            assert!(container["image"].is_string() && container["name"].is_string(), "{name}");
            for mount in items(container, "volumeMounts") {
                assert!(volumes.contains(mount["name"].as_str().unwrap()), "{name}: {mount}");
                assert!(mount["mountPath"].as_str().unwrap().starts_with('/'), "{name}: {mount}");
            }
        }
        if manifest["kind"] == "Deployment" {
            let selector = &manifest["spec"]["selector"]["matchLabels"];
            assert_eq!(*selector, manifest["spec"]["template"]["metadata"]["labels"], "{name}");
        }
    }
}

/// The state directory of every container lies on a tmpfs of the pod, and no container may gain a privilege.
#[test]
fn manifests_keep_state_in_memory_and_privileges_out() {
    for (name, manifest) in manifests() {
        let memory: Vec<&str> = items(pod(&manifest), "volumes")
            .filter(|volume| volume["emptyDir"]["medium"] == "Memory")
            .map(|volume| volume["name"].as_str().unwrap())
            .collect();
        for container in containers(&manifest) {
            let set = items(container, "env").find(|variable| variable["name"] == "OUBLIETTE_STATE_DIR");
            let state = set.map_or("/run/oubliette", |variable| variable["value"].as_str().unwrap());
            let mounted = items(container, "volumeMounts").any(|mount| {
                memory.contains(&mount["name"].as_str().unwrap())
                    && Path::new(state).starts_with(mount["mountPath"].as_str().unwrap())
            });
            assert!(mounted || container["name"] == "doctor", "{name}: {state} is on no tmpfs");
            let security = &container["securityContext"];
            if name != "cloud-run.yaml" {
                assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(words(&security["capabilities"], "drop"), ["ALL"], "{name}");
            }
        }
    }
}

#[test]
fn manifests_name_flags_and_variables_that_exist() {
    let known = variables();
    let mut lines = 0;
    for (name, manifest) in manifests() {
        for container in containers(&manifest) {
            for line in command_lines(container) {
                lines += 1;
                Cli::try_parse_from(&line).unwrap_or_else(|error| panic!("{name}: {line:?}: {error}"));
            }
            for variable in items(container, "env") {
                let (key, value) = (variable["name"].as_str().unwrap(), variable["value"].as_str().unwrap());
                if !key.starts_with("OUBLIETTE_") {
                    continue;
                }
                assert!(known.contains(key), "{name}: {key}");
                let option = key.trim_start_matches("OUBLIETTE_").to_lowercase().replace('_', "-");
                for value in value.split(',') {
                    let line = ["oubliette", "run", &format!("--{option}={value}"), "--", "true"];
                    Cli::try_parse_from(line).unwrap_or_else(|error| panic!("{name}: {key}={value}: {error}"));
                }
            }
        }
    }
    assert_eq!(lines, 5, "command lines of ours");
}

/// Root with no more than the capabilities of a manifest gives every run a UID, and removes what an agent has closed.
#[test]
fn the_capabilities_of_a_manifest_are_enough() {
    if !need::as_root() {
        return;
    }
    let (_, job) = manifests().into_iter().find(|(name, _)| name == "job.yaml").unwrap();
    let add = words(&containers(&job)[0]["securityContext"]["capabilities"], "add");
    let set: String = add.iter().map(|name| format!(",+{}", name.to_lowercase())).collect();
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    // The namespaces that such a container's seccomp profile refuses.
    let policy = dir.path().join("container.toml");
    let layers = ["pid", "root", "ipc", "uts", "net"].map(|layer| format!("{layer} = \"off\"\n")).concat();
    fs::write(&policy, format!("description = \"a container\"\ndeny = []\ncommands = \"any\"\n\n[layers]\n{layers}"))
        .unwrap();
    let inside = |command: &[&str]| {
        let mut setpriv = Command::new("setpriv");
        setpriv.arg(format!("--bounding-set=-all{set}")).arg(format!("--inh-caps=-all{set}")).arg("--no-new-privs");
        setpriv.args(["--", env!("CARGO_BIN_EXE_oubliette")]).arg(command[0]).arg("--state-dir").arg(&state);
        setpriv.args(&command[1..]);
        setpriv
    };
    let closed = "mkdir -p a/b s; touch a/b/c s/f; chmod 1700 s; chmod 0 a/b a; id -u";
    let output = inside(&["run", "--require", "uid", "--require", "seccomp", "--quiet", "--policy"])
        .arg(&policy)
        .args(["--", "sh", "-c", closed])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    let uid: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
    assert!(uid > 60_000, "{uid}");
    assert_eq!(fs::read_dir(state.join("cells")).unwrap().count(), 0, "{said}");
}

#[test]
fn systemd_units_are_well_formed() {
    let unit = |name: &str| fs::read_to_string(deploy("systemd").join(name)).unwrap();
    let service = unit("oubliette-sweep.service");
    let start = service.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let line: Vec<&str> = start.split_whitespace().collect();
    assert_eq!(line[0], "/usr/local/bin/oubliette");
    Cli::try_parse_from(&line).unwrap();
    if need::need_program("systemd-analyze").is_none() {
        return;
    }
    // Only what does not depend on this machine: that the program is installed does.
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("oubliette");
    fs::copy(env!("CARGO_BIN_EXE_oubliette"), &program).unwrap();
    for name in ["oubliette-sweep.service", "oubliette-sweep.timer"] {
        let text = unit(name).replace("/usr/local/bin/oubliette", program.to_str().unwrap());
        assert!(text.contains("Documentation=man:oubliette(1)\n"), "{name}");
        fs::write(dir.path().join(name), text.replace("Documentation=man:oubliette(1)\n", "")).unwrap();
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(["oubliette-sweep.service", "oubliette-sweep.timer"].map(|name| dir.path().join(name)))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), said.as_str()), (Some(0), ""));
}

#[test]
fn the_dockerfile_builds_on_a_distroless_base() {
    let text = fs::read_to_string(deploy("Dockerfile")).unwrap();
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    let known = ["FROM", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"];
    assert!(lines.iter().all(|(instruction, _)| known.contains(instruction)), "{lines:?}");
    assert_eq!(lines[0].0, "FROM");
    let bases: Vec<&str> = lines.iter().filter(|line| line.0 == "FROM").map(|line| line.1).collect();
    assert!(bases.last().unwrap().starts_with("gcr.io/distroless/static"), "{bases:?}");
    let stages: Vec<&str> = bases.iter().filter_map(|base| Some(base.split_once(" AS ")?.1)).collect();
    let copied = lines.iter().filter_map(|line| Some(line.1.strip_prefix("--from=")?.split_once(' ')?.0));
    assert!(copied.clone().count() > 0 && copied.clone().all(|stage| stages.contains(&stage)));
    let list = |instruction: &str| -> Vec<String> {
        let (_, value) = lines.iter().find(|line| line.0 == instruction).unwrap();
        serde_json::from_str(value).unwrap_or_else(|error| panic!("{instruction} {value}: {error}"))
    };
    let line = [list("ENTRYPOINT"), list("CMD")].concat();
    let installed = lines.iter().find_map(|line| line.1.strip_prefix("--from=build ")).unwrap();
    let place = Path::new(installed.split_whitespace().last().unwrap());
    assert_eq!(Path::new(&line[0]).parent(), Some(place));
    let built = lines.iter().find(|line| line.0 == "RUN").unwrap().1;
    for name in ["oubliette", "oubliette-broker"] {
        assert!(built.split_whitespace().any(|word| word == format!("target/*/release/{name}")), "{name}");
    }
    Cli::try_parse_from(&line).unwrap();
}

/// A unit or an image insists on layers by a variable, and no flag takes that back.
#[test]
fn a_variable_adds_to_what_the_flags_require() {
    let explain = |variable: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oubliette"));
        let flags = ["explain", "--network", "host", "--require", "capabilities", "--", "true"];
        command.env("OUBLIETTE_REQUIRE", variable).args(flags).output().unwrap()
    };
    let output = explain("net, no-new-privs");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(125), "{err}");
    assert!(err.contains("cannot enforce layer net: ") && err.contains("hint: do not require net"), "{err}");
    let lines: Vec<String> = out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in ["require capabilities (flag)", "require net (variable)", "require no-new-privs (variable)"] {
        assert!(lines.iter().any(|said| said == line), "{line}: {out}");
    }
    let output = explain("net,nets");
    assert_eq!(output.status.code(), Some(125));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("cannot use OUBLIETTE_REQUIRE: unknown layer `nets`"), "{err}");
}
