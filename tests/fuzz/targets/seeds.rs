//! Writes the first corpus of every target below the directory named.

use std::path::PathBuf;
use std::{env, fs, io};

// Only for the coverage counters' other half, which every program built with them needs.
use libfuzzer_sys as _;

fn main() -> io::Result<()> {
    let corpus = PathBuf::from(env::args_os().nth(1).ok_or(io::ErrorKind::InvalidInput)?);
    for target in superchat_fuzz::TARGETS {
        let directory = corpus.join(target.name);
        fs::create_dir_all(&directory)?;
        for (index, seed) in (target.seeds)().iter().enumerate() {
            fs::write(directory.join(format!("seed-{index:04}")), seed)?;
        }
    }
    Ok(())
}
