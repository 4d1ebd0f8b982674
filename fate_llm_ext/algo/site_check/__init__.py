"""Site check: do the sites of a federation reach each other, and do they run the same?"""
