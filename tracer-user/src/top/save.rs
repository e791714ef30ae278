//! Writes the selection as a recording, on a thread of its own.

use super::model::Recent;
use crate::event::model::Record;
use crate::recording::{Header, Place, Recorder};
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::thread;

/// Begins; what came of it goes to `told`, in a line.
pub(super) fn save(path: PathBuf, drops: Vec<Recent>, header: Header, told: Sender<String>) {
    let name = path.display().to_string();
    let failed = told.clone();
    let work = move || {
        let line = match write(path, &drops, header) {
            Ok(()) => format!("{} drops are in {name}", drops.len()),
            Err(error) => format!("not saved: {error}"),
        };
        // The view may be gone.
        let _ = told.send(line);
    };
    if let Err(error) = thread::Builder::new().name("save".to_owned()).spawn(work) {
        let _ = failed.send(format!("not saved: can't start a thread: {error}"));
    }
}

fn write(path: PathBuf, drops: &[Recent], header: Header) -> Result<(), String> {
    if path.extension().is_none_or(|end| end != "parquet") {
        return Err("the file's name must end in .parquet".to_owned());
    }
    let mut recorder = Recorder::begin(Place::File(path), header).map_err(|error| error.to_string())?;
    for recent in drops {
        recorder.add(&Record::Drop(Box::new((*recent.drop).clone())));
    }
    recorder.finish();
    match recorder.failed() {
        Some(why) => Err(why.to_owned()),
        None => Ok(()),
    }
}
