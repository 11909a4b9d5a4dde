//! Words of the field as values.
#![forbid(unsafe_code)]

pub mod class;
pub mod error;
pub mod exit;
pub mod hosts;
pub mod layer;
pub mod paths;
pub mod user;
pub mod values;
