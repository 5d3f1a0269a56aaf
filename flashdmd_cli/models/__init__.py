"""Networks behind one question: what is x0, given x_t, t and a condition?"""
