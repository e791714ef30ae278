//! eBPF objects that a process holds, and whether they still exist.

use super::command;
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;

/// Identifiers of programs, maps and links.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    programs: BTreeSet<u64>,
    maps: BTreeSet<u64>,
    links: BTreeSet<u64>,
}

impl Objects {
    /// What a process has open (`/proc/PID/fdinfo`), and the maps of its programs.
    ///
    /// # Errors
    /// When the process is gone, or bpftool fails.
    pub fn held_by(pid: u32) -> Result<Self> {
        let mut held = Self::default();
        let folder = format!("/proc/{pid}/fdinfo");
        for entry in fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
            // Descriptors come and go while we look.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
                let Ok(id) = value.trim().parse() else { continue };
                // A link's entry names its program too.
                match key {
                    "prog_id" => held.programs.insert(id),
                    "map_id" => held.maps.insert(id),
                    "link_id" => held.links.insert(id),
                    _ => false,
                };
            }
        }
        for program in show("prog")?.iter().filter(|program| held.programs.contains(&id(program))) {
            let maps = program["map_ids"].as_array().into_iter().flatten();
            held.maps.extend(maps.filter_map(serde_json::Value::as_u64));
        }
        Ok(held)
    }

    /// Those that still exist.
    ///
    /// # Errors
    /// When bpftool fails.
    pub fn alive(&self) -> Result<Self> {
        let living = |kind: &str, ours: &BTreeSet<u64>| -> Result<BTreeSet<u64>> {
            Ok(show(kind)?.iter().map(id).filter(|id| ours.contains(id)).collect())
        };
        Ok(Self {
            programs: living("prog", &self.programs)?,
            maps: living("map", &self.maps)?,
            links: living("link", &self.links)?,
        })
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.programs.is_empty() && self.maps.is_empty() && self.links.is_empty()
    }
}

fn id(object: &serde_json::Value) -> u64 {
    object["id"].as_u64().unwrap_or(0)
}

fn show(kind: &str) -> Result<Vec<serde_json::Value>> {
    let shown = command::run(&format!("bpftool -j {kind} show"))?;
    // Nothing at all is printed where there are no links.
    if shown.trim().is_empty() {
        return Ok(Vec::new());
    }
    match serde_json::from_str(&shown).with_context(|| format!("bpftool {kind} show"))? {
        serde_json::Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}
