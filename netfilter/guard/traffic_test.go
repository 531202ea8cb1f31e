package guard

const senderEnv = "SARU_GUARD_TEST_SENDER"

func sendAsUser(string) int { return 0 }
