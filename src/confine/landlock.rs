//! The Landlock domain: a second fence inside the private root, and the only one for a plain user without namespaces.
#![forbid(unsafe_code)]

use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::errno::Errno;

use crate::plan::rules::{Access, FileRule, Landlock, Place};
use crate::types::layout::Places;

/// Enters the domain. Comes after every mount: inside a domain for files each mount is EPERM, whoever asks.
///
/// # Errors
/// What could not be done, and the errno where the kernel gave one.
pub fn enter(plan: &Landlock, places: &Places, work: Option<BorrowedFd<'_>>) -> Result<(), (String, Errno)> {
    let abi = version(plan.abi);
    let created =
        handled(plan, abi).and_then(Ruleset::create).map_err(|error| failed("make a Landlock ruleset", &error))?;
    let created = add_files(created, plan, abi, places, work)?;
    let created = add_ports(created, plan, places).map_err(|error| failed("add a Landlock rule for a port", &error))?;
    let status = created.restrict_self().map_err(|error| failed("enter the Landlock domain", &error))?;
    if status.ruleset != RulesetStatus::FullyEnforced {
        return Err(("enter the whole Landlock domain".into(), Errno::EOPNOTSUPP));
    }
    if plan.path_sockets {
        let closed = crate::sys::landlock::close_path_sockets();
        closed.map_err(|errno| ("keep sockets with a path out of the Landlock domain".into(), errno))?;
    }
    Ok(())
}

fn handled(plan: &Landlock, abi: ABI) -> Result<Ruleset, landlock::RulesetError> {
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    if plan.files.is_some() {
        ruleset = ruleset.handle_access(AccessFs::from_all(abi))?;
    }
    if plan.connect.is_some() {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?;
    }
    if plan.bind.is_some() {
        ruleset = ruleset.handle_access(AccessNet::BindTcp)?;
    }
    if plan.scope {
        ruleset = ruleset.scope(Scope::AbstractUnixSocket | Scope::Signal)?;
    }
    Ok(ruleset)
}

fn add_files(
    mut created: RulesetCreated,
    plan: &Landlock,
    abi: ABI,
    places: &Places,
    work: Option<BorrowedFd<'_>>,
) -> Result<RulesetCreated, (String, Errno)> {
    for FileRule { place, access } in plan.files.iter().flatten() {
        if let (Place::Work, Some(work)) = (place, work) {
            let added = created.add_rule(PathBeneath::new(work, rights(*access, abi, true)));
            created = added.map_err(|error| failed("add a Landlock rule for the workspace", &error))?;
            continue;
        }
        let path = path_of(place, places);
        let file = match PathFd::new(&path) {
            Ok(file) => file,
            // A host without this file needs no rule for it.
            Err(_) if matches!(place, Place::Path(_)) && !path.exists() => continue,
            Err(_) => return Err((format!("open {} for a Landlock rule", path.display()), Errno::ENOENT)),
        };
        let rights = rights(*access, abi, is_directory(&file));
        created = created
            .add_rule(PathBeneath::new(file, rights))
            .map_err(|error| failed(&format!("add a Landlock rule for {}", path.display()), &error))?;
    }
    Ok(created)
}

fn add_ports(
    mut created: RulesetCreated,
    plan: &Landlock,
    places: &Places,
) -> Result<RulesetCreated, landlock::RulesetError> {
    let brokers = places.broker.filter(|_| plan.broker);
    for &port in plan.connect.iter().flatten().chain(&brokers) {
        created = created.add_rule(NetPort::new(port, AccessNet::ConnectTcp))?;
    }
    for &port in plan.bind.iter().flatten() {
        created = created.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    Ok(created)
}

fn is_directory(file: &PathFd) -> bool {
    nix::sys::stat::fstat(file.as_fd()).is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// Rights of directories on a file are EINVAL.
fn rights(access: Access, abi: ABI, directory: bool) -> BitFlags<AccessFs> {
    // Nobody in a cell may make a device, and a rule that says so costs nothing.
    let all = AccessFs::from_all(abi) & !(AccessFs::MakeChar | AccessFs::MakeBlock);
    let rights = match access {
        Access::Read => AccessFs::ReadFile | AccessFs::ReadDir,
        Access::Execute => AccessFs::ReadFile | AccessFs::ReadDir | AccessFs::Execute,
        Access::Program => AccessFs::Execute.into(),
        Access::Write => all & !BitFlags::from(AccessFs::Execute),
        Access::All => all,
        Access::Device => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::ReadDir | (all & AccessFs::IoctlDev),
    };
    if directory { rights } else { rights & AccessFs::from_file(abi) }
}

fn path_of(place: &Place, places: &Places) -> PathBuf {
    match place {
        Place::Home => places.home.clone(),
        Place::Tmp => places.tmp.clone(),
        Place::Work => places.work.clone(),
        Place::Settings => places.settings.clone(),
        Place::Shm => PathBuf::from("/dev/shm"),
        Place::OwnProc => Path::new("/proc").join(std::process::id().to_string()),
        Place::Path(path) => path.clone(),
    }
}

fn version(abi: u32) -> ABI {
    match abi {
        0 => ABI::Unsupported,
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        6 => ABI::V6,
        // Later ABIs add flags for the audit log and threads; rights that this program does not know stay unhandled.
        _ => ABI::V7,
    }
}

fn failed(action: &str, error: &landlock::RulesetError) -> (String, Errno) {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(cause) = source {
        if let Some(number) = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) {
            return (action.to_owned(), Errno::from_raw(number));
        }
        source = cause.source();
    }
    (format!("{action} ({error})"), Errno::EINVAL)
}
