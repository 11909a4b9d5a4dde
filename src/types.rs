//! Words of the field as values.
#![forbid(unsafe_code)]

pub mod class;
pub mod error;
pub mod exit;
pub mod hosts;
pub mod layer;
pub mod layout;
pub mod network;
pub mod paths;
pub mod units;
pub mod user;
pub mod values;
