//! What must hold for every plan, whatever policy, agent, request and host it is made of.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use oubliette::host::Host;
use oubliette::host::facts::Kind;
use oubliette::plan::layers::{lends, want};
use oubliette::plan::on::default_range;
use oubliette::plan::rules::{Access, Place};
use oubliette::plan::{Identity, Plan, Text};
use oubliette::policy::Policy;
use oubliette::policy::agents::rendered::FilePlace;
use oubliette::policy::agents::spec::AgentSpec;
use oubliette::request::Request;
use oubliette::types::layer::{Decision, Layer, Want};
use oubliette::types::layout::DEVICES;

/// Makes the plan and holds it against what it was made of.
pub fn check_plan(request: &Request, policy: &Policy, agent: &AgentSpec, host: &Host) {
    let plan = match Plan::new(request, policy, agent, host) {
        Ok(plan) => plan,
        Err(refusal) => {
            let refused =
                |planned: &&oubliette::types::layer::Planned| matches!(planned.decision, Decision::Refuse { .. });
            let names: Vec<Layer> = refusal.layers.iter().filter(refused).map(|planned| planned.layer).collect();
            assert!(!names.is_empty(), "refused for nothing");
            let wanted = |layer: &Layer| want(request, policy, *layer) != Want::Off;
            assert!(names.iter().all(wanted), "refused for {names:?}, which are off");
            assert!(!refusal.error().remedy().is_empty());
            return;
        }
    };
    layers(&plan, request, policy, host);
    uid(&plan, request, policy, host);
    let allowed = allowed(policy, host);
    shown(&plan, &allowed);
    rules(&plan, policy, host, &allowed);
    texts(&plan);
    serde_json::to_string(&plan).expect("a plan as JSON");
}

fn layers(plan: &Plan, request: &Request, policy: &Policy, host: &Host) {
    assert_eq!(plan.layers.len(), Layer::ALL.len());
    let abi = host.landlock.get().copied().unwrap_or(0);
    let namespaces = host.namespaces.get().is_ok();
    for layer in Layer::ALL.into_iter().filter(|layer| plan.enforces(*layer)) {
        assert_ne!(want(request, policy, layer), Want::Off, "{layer} is off");
        let there = match layer {
            Layer::Root => namespaces && host.mounts.get().is_ok(),
            Layer::Pid | Layer::Ipc => namespaces,
            Layer::Uts => namespaces && host.uts.get().is_ok(),
            Layer::Net => namespaces && host.net.get().is_ok(),
            Layer::Uid => host.uids.get().is_ok(),
            Layer::LandlockFs => abi >= 1,
            Layer::LandlockNet => abi >= 4,
            Layer::LandlockScope => abi >= 6,
            Layer::PathSockets => abi >= 9 || host.seccomp.get().is_ok() || plan.enforces(Layer::Root),
            Layer::Seccomp => host.seccomp.get().is_ok(),
            Layer::Cgroup => host.cgroup.get().is_ok(),
            Layer::Capabilities | Layer::NoNewPrivs | Layer::Limits | Layer::Settings | Layer::Alone => true,
        };
        assert!(there, "{layer} is claimed and the host lacks it");
    }
    for layer in Layer::ALL.into_iter().filter(|layer| policy.want(*layer) == Want::Required) {
        assert!(plan.enforces(layer), "{layer} is required");
    }
}

/// A UID of the range is the run's alone, or there is no run.
fn uid(plan: &Plan, request: &Request, policy: &Policy, host: &Host) {
    let lends = want(request, policy, Layer::Uid) != Want::Off && host.uids.get().is_ok() && lends(request);
    if let Identity::PerRun(range) = plan.identity {
        assert!(lends && range.last >= range.first);
    }
    let Ok(ranges) = host.ranges.get() else {
        assert!(!lends, "nobody knows whose UIDs these are");
        return;
    };
    let range = request.uid_range.unwrap_or(default_range(host));
    assert!(!lends || ranges.taken(range).is_none(), "{range} is somebody else's");
}

/// What of the host's files a cell may see.
fn allowed(policy: &Policy, host: &Host) -> BTreeSet<PathBuf> {
    let named = policy.files.programs.iter().chain(&policy.files.config).map(|path| path.as_path().to_owned());
    let programs = host
        .programs
        .all()
        .flat_map(|program| program.shown.iter().cloned().chain(program.links.iter().map(|(link, _)| link.clone())));
    named.chain(programs).chain(host.extra.iter().map(|(path, _)| path.clone())).collect()
}

fn is_plain(path: &Path) -> bool {
    path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
}

fn shown(plan: &Plan, allowed: &BTreeSet<PathBuf>) {
    let Some(root) = &plan.root else { return };
    for shown in &root.shown {
        assert!(allowed.contains(&shown.path), "{} was not allowed", shown.path.display());
        assert!(is_plain(&shown.path), "{}", shown.path.display());
        for own in ["/home/agent", "/work", "/proc", "/dev", "/tmp"] {
            assert!(!Path::new(own).starts_with(&shown.path), "{} hides {own}", shown.path.display());
        }
        assert!(!matches!(&shown.kind, Kind::Link(target) if target.as_os_str().is_empty()));
    }
    for file in plan.settings.iter().flat_map(|settings| &settings.files) {
        if let FilePlace::Managed(path) = &file.place {
            assert!(is_plain(path.as_path()), "{path:?}");
        }
    }
}

fn rules(plan: &Plan, policy: &Policy, host: &Host, allowed: &BTreeSet<PathBuf>) {
    let Some(files) = plan.landlock.as_ref().and_then(|domain| domain.files.as_ref()) else { return };
    let executed: BTreeSet<&Path> = host
        .programs
        .all()
        .flat_map(|program| program.executed.iter().map(PathBuf::as_path))
        .chain(host.agent_programs.iter().map(PathBuf::as_path))
        .chain(policy.kernel.execute.list().into_iter().flatten().map(Path::new))
        .collect();
    for rule in files {
        let Place::Path(path) = &rule.place else { continue };
        assert!(is_plain(path), "{} is looked up where the child stands", path.display());
        let sound = match rule.access {
            Access::Write | Access::All => false,
            Access::Device => {
                path == Path::new("/dev/pts") || DEVICES.iter().any(|name| *path == Path::new("/dev").join(name))
            }
            Access::Program => executed.contains(path.as_path()),
            Access::Execute => allowed.contains(path) || (plan.root.is_some() && path == Path::new("/")),
            Access::Read => {
                let known = |start: &str| path.starts_with(start) && path != Path::new(start);
                allowed.contains(path)
                    || (plan.root.is_some() && path == Path::new("/"))
                    || known("/proc")
                    || known("/etc")
            }
        };
        assert!(sound, "{rule:?}");
    }
}

/// What becomes a file name, an argument or a variable is one.
fn texts(plan: &Plan) {
    let sound = |text: &Text| match text {
        Text::Plain(text) | Text::Hidden(text) => !text.as_encoded_bytes().contains(&0),
        Text::Template(text) | Text::Pass(text) => !text.contains('\0'),
    };
    assert!(plan.arguments.iter().all(sound), "{:?}", plan.arguments);
    for (name, value) in &plan.environment {
        let name = name.as_encoded_bytes();
        assert!(!name.is_empty() && !name.contains(&b'=') && !name.contains(&0) && sound(value), "{name:?}");
    }
    if let Some(shim) = &plan.shim {
        assert!(shim.arguments.iter().all(sound), "{:?}", shim.arguments);
        let mut parts = Path::new(&shim.name).components();
        assert!(matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)), "{}", shim.name);
    }
    for (name, _) in plan.home.iter().chain(&plan.home_terminal) {
        let path = Path::new(name);
        assert!(path.is_relative() && path.components().all(|part| matches!(part, Component::Normal(_))), "{name}");
    }
}
