//! Files that are whole at every moment, and there again after a power cut.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

/// Reads a file; `None` if there is no file of this name.
pub fn read_if_present(file: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(file) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) => match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::IsADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

/// Writes a hidden temporary file beside `file`, synced and ready to be renamed into its place; removed when dropped.
pub fn stage(file: &Path, bytes: &[u8]) -> io::Result<TempPath> {
    let mut staged = tempfile::Builder::new()
        .prefix(&hidden(file))
        .suffix(".tmp")
        .tempfile_in(directory_of(file))?;
    staged.write_all(bytes)?;
    staged.as_file().sync_all()?;
    // Only the name: a batch may stage more files than a process may have open.
    Ok(staged.into_temp_path())
}

/// The prefix of all hidden files that belong to `file`. A card's name never starts with a dot.
pub fn hidden(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default();
    format!(".{}.", name.to_string_lossy())
}

/// Removes a file; it is no error if there is none.
pub fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes a directory and what is missing above it, and notes each in `made`, also when it fails half way.
pub fn make_directory(directory: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    let missing: Vec<_> = directory
        .ancestors()
        .take_while(|it| !it.exists())
        .collect();
    for directory in missing.into_iter().rev() {
        match fs::create_dir(directory) {
            Ok(()) => {
                made.push(directory.to_owned());
                sync_directory_of(directory)?;
            }
            // Another writer was faster.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Makes renames and removals of `file` last: they are changes to its directory.
pub fn sync_directory_of(file: &Path) -> io::Result<()> {
    sync_directory(directory_of(file))
}

pub fn sync_directory(directory: &Path) -> io::Result<()> {
    // Only Unix opens a directory as a file.
    if cfg!(unix) {
        File::open(directory)?.sync_all()?;
    }
    Ok(())
}

pub fn directory_of(file: &Path) -> &Path {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    }
}
