use super::*;

#[test]
fn troubles_end_with_the_server_that_had_them() {
    let folder = tempfile::tempdir().unwrap();
    let state = Sqlite::serve(folder.path()).unwrap();
    let alerts = vec![("slots".to_owned(), Some("none is left".to_owned()))];
    state.save(&Batch { alerts, ..Batch::default() }).unwrap();
    let command = Sqlite::command(folder.path()).unwrap();
    assert_eq!(command.alerts().unwrap().len(), 1, "a command ends none");
    drop(state);
    let state = Sqlite::serve(folder.path()).unwrap();
    assert_eq!(state.alerts().unwrap(), []);
}

#[test]
fn a_database_that_is_busy_is_not_a_broken_one() {
    let error = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
    for code in [ffi::SQLITE_FULL, ffi::SQLITE_BUSY, ffi::SQLITE_BUSY_SNAPSHOT, ffi::SQLITE_LOCKED] {
        assert!(matches!(sort(Path::new("x"), &error(code)), StateError::Busy { .. }), "{code}");
    }
    for code in [ffi::SQLITE_IOERR, ffi::SQLITE_IOERR_SHORT_READ, ffi::SQLITE_ERROR] {
        assert!(matches!(sort(Path::new("x"), &error(code)), StateError::Other { .. }), "{code}");
    }
}
