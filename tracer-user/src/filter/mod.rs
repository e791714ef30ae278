//! temporary
use tracer_common::{FilterSpec, PrefixKey};
/// x
#[derive(Clone, Debug, Default)]
pub struct Compiled { pub spec: FilterSpec, pub addresses: Vec<(PrefixKey,u32)>, pub ports: Vec<(u16,u32)>, pub protocols: Vec<(u32,u32)>, pub interfaces: Vec<([u8;16],u32)>, pub netns: Vec<(u32,u32)>, pub reasons: Vec<(u32,u32)> }
