//! The `droptrace` command.

use std::{
    env,
    ffi::OsString,
    io::{self, Write as _},
    process::ExitCode,
};
use tracer_user::{
    cause::BadCauses,
    cli::{self, Command},
    doctor,
    filter::netns,
    hist, live,
    output::{self, Printer},
    recording, report, top, trace,
};

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let command = match cli::parse(&arguments, &netns::resolve) {
        Ok(command) => command,
        Err(refusal) => {
            // If it can't be printed, the code says it all.
            let _ = refusal.print();
            return ExitCode::from(refusal.exit_code());
        }
    };
    match run(command, &arguments) {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "droptrace: error: {error:#}");
            let is_meaningless = error.is::<BadCauses>();
            if is_meaningless { ExitCode::from(output::MEANINGLESS) } else { ExitCode::FAILURE }
        }
    }
}

fn run(command: Command, arguments: &[OsString]) -> anyhow::Result<u8> {
    match command {
        Command::Live(live) => {
            let printer = Printer::new(live.settings(), io::stdout(), io::stderr());
            return live::run(&live.watch, arguments, printer);
        }
        Command::Trace(settings) => return trace::run::run(&settings, arguments),
        Command::Hist(settings) => return hist::run(&settings, arguments),
        Command::Top(settings) => return top::run(&settings, arguments),
        Command::Record(record) => return recording::run(&record, arguments),
        Command::Replay(replay) => {
            let printer = Printer::new(replay.settings(), io::stdout(), io::stderr());
            let judge = (replay.judge.assert_no_drops, replay.judge.strict);
            return recording::replay::run(
                &replay.files,
                &replay.part,
                &replay.causes.load()?,
                judge,
                printer,
            );
        }
        Command::Report(settings) => return report::run(&settings),
        Command::Doctor(settings) => return doctor::run(&settings, arguments),
        Command::Schema => io::stdout().write_all(output::SCHEMA.as_bytes())?,
        Command::Completions(shell) => io::stdout().write_all(&cli::completions(shell))?,
        Command::Man => io::stdout().write_all(&cli::man()?)?,
    }
    Ok(0)
}

/// The reader of our output went away: a clean end.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
