//! Clients that send too much, too little or nonsense, and those that do not read. None of them may hurt others.
