//! Attacks on kernel objects that have numbers or names instead of paths.
#![forbid(unsafe_code)]

use std::ffi::CString;

use super::target::Target;
use crate::attack::tried::{Tried, blocked};
use crate::sys::attack::ipc;

pub(super) fn shm(t: &Target) -> Tried {
    t.shows(&ipc::shm_read(t.shm.ok_or_else(|| t.lacks("shm"))?)?, "segment")
}

pub(super) fn sem(t: &Target) -> Tried {
    ipc::sem_set(t.sem.ok_or_else(|| t.lacks("sem"))?, 3)?;
    Ok("semaphore set".into())
}

pub(super) fn msg(t: &Target) -> Tried {
    t.shows(&ipc::msg_take(t.msg.ok_or_else(|| t.lacks("msg"))?)?, "message")
}

pub(super) fn mq(t: &Target) -> Tried {
    let name = CString::new(t.mq.clone().ok_or_else(|| t.lacks("mq"))?).map_err(blocked)?;
    t.shows(&ipc::mq_take(&name)?, "message")
}

pub(super) fn key_by_serial(t: &Target) -> Tried {
    t.shows(&ipc::key_read(t.key.ok_or_else(|| t.lacks("key"))?)?, "key")
}

pub(super) fn key_by_name(t: &Target) -> Tried {
    t.key.ok_or_else(|| t.lacks("key"))?;
    let name = CString::new(t.key_name.clone().unwrap_or_default()).map_err(blocked)?;
    let serial = ipc::key_search(ipc::USER_KEYRING, &name)?;
    t.shows(&ipc::key_read(serial)?, "key")
}

pub(super) fn key_add(_: &Target) -> Tried {
    ipc::key_add(c"oubliette-attack", b"x", ipc::PROCESS_KEYRING).map(ipc::key_drop)?;
    Ok("added a key".into())
}
